"""Cases of plain Slurm jobs: those of causes.py, jobs that hang, and log excerpts for special hardware."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.failures_report.case import RUN, Case, Site
from llm_bridge.diagnosis.classes import Action
from llm_bridge.diagnosis.signatures import BY_ID
from llm_bridge.operators.slurm import SlurmSubmitOperator
from llm_bridge.slurm.spec import Resources, SlurmJob
from testing import causes
from testing.causes import BY_NAME, CAUSES, CLUSTER_ENV, Cause

GPU_LOGS = Path(__file__).resolve().parents[2] / "testing" / "gpu_logs"
HANG_MINUTES = 0.1
# A port without a listener: a rendezvous whose first node is unreachable.
NO_RENDEZVOUS = """\
import datetime, torch.distributed
torch.distributed.TCPStore("n4", 29511, 2, False, timeout=datetime.timedelta(seconds=3))
"""
# W&B's client, and in place of W&B a server that refuses every key.
WANDB = """\
import http.server, os, threading
class Refuses(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"errors":[{"message":"user is not logged in"}]}')
    def log_message(self, *arguments):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "0" * 40}
os.environ |= {"WANDB_MODE": "online", "WANDB_ERROR_REPORTING": "false"}
import wandb
wandb.init(project="p", entity="acme")
"""
STATE = "/var/lib/slurm/slurmctld"


def of_cause(cause: Cause) -> Case:
    """Return the case of a cause in causes.py, which the tests use, too."""

    def operator(site: Site, options: dict[str, Any]) -> SlurmSubmitOperator:
        return SlurmSubmitOperator(job=cause.job(site.workspace, site.name, RUN), **options)

    def meddle(site: Site, trigger: Any) -> None:
        causes.wait_until_running(site.cluster, trigger.job_id)
        if cause.settings:
            causes.wait_for_step(site.workspace, RUN, cause.name, causes.SAVED)
        assert cause.meddle
        cause.meddle(site.cluster, trigger.job_id)

    return Case(
        cause.name, cause.how, cause.kind, cause.action, cause.evidence, operator,
        node=cause.kind == "node_failure",
        meddle=meddle if cause.meddle else None,
        mend=(lambda site: cause.mend(site.cluster)) if cause.mend else None,  # type: ignore[misc]
        log="attempt-1/output.log" if cause.settings else None,
    )  # fmt: skip


def script(site: Site, options: dict[str, Any], text: str, **more: Any) -> SlurmSubmitOperator:
    """Return the operator of a shell script."""
    job = SlurmJob(
        cluster=more.pop("cluster", site.name),
        script=f"#!/bin/bash\n{text}\n",
        directory=site.stage(options["task_id"]),
        resources=Resources(cpus_per_task=1, mem="1G"),
    )
    return SlurmSubmitOperator(job=job, **options, **more)


def no_module(site: Site, options: dict[str, Any]) -> SlurmSubmitOperator:
    """Return the operator of a job whose cluster loads a missing module (Debian's environment-modules)."""
    name = site.variant("modules", environment={"modules": ["cuda/99.9"]})
    return script(site, options, "echo it runs without its module", cluster=name)


# ---- hangs


def training(site: Site, options: dict[str, Any], **more: Any) -> SlurmSubmitOperator:
    """Return the operator of a training with hang detection."""
    cause = causes.replace_steps(BY_NAME["preempted"], 20, name=options["task_id"])
    job = cause.job(site.workspace, site.name, RUN)
    resources = job.resources.model_copy(update={"partition": None})
    job = job.model_copy(update={"resources": resources})
    return SlurmSubmitOperator(job=job, hang_minutes=HANG_MINUTES, **options, **more)


def stop(site: Site, trigger: Any) -> None:
    """Send SIGSTOP to the training, in the namespace of its node."""
    causes.wait_for_step(site.workspace, RUN, trigger.directory.split("/")[-2], causes.SAVED)
    signal(site, trigger, "STOP")


def stop_until_alert(site: Site, trigger: Any) -> None:
    """Stop the training, and continue it as soon as an alert was sent."""
    before, deadline = len(site.posts), time.monotonic() + 60
    stop(site, trigger)
    while len(site.posts) == before:
        assert time.monotonic() < deadline, "no alert about the hang within 60 s"
        time.sleep(0.2)
    signal(site, trigger, "CONT")


def signal(site: Site, trigger: Any, name: str) -> None:
    """Send a signal to a job's script on its node."""
    node = causes.nodes_of(site.cluster, trigger.job_id)
    site.run(node, "pkill", f"-{name}", "-f", "user_script.sh")


# ---- a slurmctld that crashes


def crash(site: Site, trigger: Any) -> None:
    """Restart slurmctld with its state from before the job, as after a crash shortly after the submission."""
    causes.wait_until_running(site.cluster, trigger.job_id)
    site.cluster.kill("slurmctld")
    site.run("ctl", "sh", "-c", f"rm -rf {STATE} && cp -a {STATE}.saved {STATE}")
    site.cluster.start("slurmctld")


def save_state(site: Site) -> None:
    """Save slurmctld's state for :func:`crash`."""
    site.cluster.stop("slurmctld")
    site.run("ctl", "sh", "-c", f"rm -rf {STATE}.saved && cp -a {STATE} {STATE}.saved")
    site.cluster.start("slurmctld")
    site.cluster.wait_for_nodes()


# ---- excerpts


def excerpt(line: str, node: str = "") -> Any:
    """Return a function for the operator of a job that prints a line of a log and fails.

    Args:
        line: The line.
        node: Node name in the line, which the job's own replaces; on other nodes than n1 the job then succeeds.
    """
    line = line.replace("'", "'\\''")
    text = f"echo '{line}'; exit 1"
    if node:
        line = line.replace(node, "'$SLURMD_NODENAME'")
        text = f"[ $SLURMD_NODENAME = n1 ] || exit 0\necho '{line}'; exit 1"
    return lambda site, options: script(site, options, text)


def gpu_log(name: str) -> Any:
    """Return a function for the operator of a job that prints a log of gpu_causes.py from two H100s and fails."""
    log = (GPU_LOGS / f"{name}.log").read_text()
    return lambda site, options: script(site, options, f"cat <<'END_OF_LOG'\n{log}END_OF_LOG\nexit 1")


CASES: tuple[Case, ...] = (
    *map(of_cause, CAUSES),
    Case("module", "module load of a missing module", "environment", Action.STOP, "cuda/99.9", no_module),
    Case("no_rendezvous", "torch's rendezvous on a node without a listener", "network", Action.LATER, "(n4, 29511)",
         lambda site, options: script(site, options, f"{CLUSTER_ENV}/bin/python - <<'END'\n{NO_RENDEZVOUS}END")),
    Case("wandb_key", "wandb.init with an unknown key", "token_refused", Action.STOP,
         "user is not logged in",
         lambda site, options: script(site, options, f"{CLUSTER_ENV}/bin/python - <<'END'\n{WANDB}END")),
    Case("task_limit", "the task exceeds its execution_timeout", "task_limit", Action.LATER, "task's own time limit",
         lambda site, options: script(site, options, "sleep 100", execution_timeout=timedelta(seconds=4))),
    Case("hang", "SIGSTOP to a training; on_hang: retry", "hang", Action.ELSEWHERE, "no output and no new step",
         lambda site, options: training(site, options, on_hang="retry"), node=True, meddle=stop,
         expects=("succeeded", ("hang",)), log="attempt-1/output.log"),
    Case("hang_reported", "SIGSTOP, and SIGCONT after the alert; on_hang: report", "hang", None,
         "no output and no new step for", training, node=True, meddle=stop_until_alert,
         expects=("succeeded", ("hang",))),
    Case("forgotten", "slurmctld crashes and has not saved the job", "forgotten", Action.CONTINUE, "Slurm has lost",
         lambda site, options: training(site, options), prepare=save_state, meddle=crash,
         log="attempt-1/output.log"),
    Case("quota", "prints Python's message about an exceeded quota", "disk_full", Action.STOP, "Disk quota exceeded",
         excerpt("OSError: [Errno 122] Disk quota exceeded: '/shared/checkpoints/global_step_40'"), caused="excerpt"),
    Case("nccl", "prints NCCL's message about a broken connection", "network", Action.ELSEWHERE, "NCCL WARN NET/IB",
         excerpt(BY_ID["nccl_transport"].excerpt, "gpu95"), node=True, caused="excerpt"),
    Case("nccl_timeout", "prints the log of two H100s, one of which stopped", "network", Action.LATER,
         "Watchdog caught collective operation timeout", gpu_log("one_rank_stops"), caused="excerpt"),
    Case("cuda_oom", "prints the log of two H100s, one of which ran out of memory", "cuda_oom", Action.STOP,
         "Tried to allocate 40.00 GiB", gpu_log("cuda_oom_on_one_rank"), caused="excerpt"),
    Case("gpu_hardware", "prints the driver's message about a broken GPU (Xid 79)", "gpu_hardware", Action.ELSEWHERE,
         "fallen off the bus", excerpt(BY_ID["xid"].excerpt, "gpu96"), node=True, caused="excerpt"),
)  # fmt: skip
