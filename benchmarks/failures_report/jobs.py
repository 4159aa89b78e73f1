"""Cases of plain Slurm jobs: those of causes.py, jobs that hang, and what only a log excerpt can show here."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.failures_report import causes
from benchmarks.failures_report.case import RUN, Case, Site
from benchmarks.failures_report.causes import BY_NAME, CAUSES, CLUSTER_ENV, Cause
from llm_bridge.failures.kinds import Action
from llm_bridge.failures.signatures import BY_ID
from llm_bridge.slurm.job import Resources, SlurmJob
from llm_bridge.slurm.operators import SlurmSubmitOperator

GPU_LOGS = Path(__file__).resolve().parents[2] / "tests" / "unit" / "gpu_logs"
HANG_MINUTES = 0.1
# Nobody listens there: what is left of a rendezvous whose first node cannot be reached.
NO_RENDEZVOUS = """\
import datetime, torch.distributed
torch.distributed.TCPStore("n4", 29511, 2, False, timeout=datetime.timedelta(seconds=3))
"""
# W&B's own client, and in place of W&B a server that knows no key.
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
    """One of causes.py, which the tests share."""

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
    """A job of a few lines of shell."""
    job = SlurmJob(
        cluster=more.pop("cluster", site.name),
        script=f"#!/bin/bash\n{text}\n",
        directory=site.stage(options["task_id"]),
        resources=Resources(cpus_per_task=1, mem="1G"),
    )
    return SlurmSubmitOperator(job=job, **options, **more)


def no_module(site: Site, options: dict[str, Any]) -> SlurmSubmitOperator:
    """`module load` stands in the project's own batch script; the modules are Debian's environment-modules."""
    name = site.variant("modules", environment={"modules": ["cuda/99.9"]})
    return script(site, options, "echo it runs without its module", cluster=name)


# ---- hangs


def training(site: Site, options: dict[str, Any], **more: Any) -> SlurmSubmitOperator:
    """A training that somebody stops."""
    cause = causes.replace_steps(BY_NAME["preempted"], 20, name=options["task_id"])
    job = cause.job(site.workspace, site.name, RUN)
    resources = job.resources.model_copy(update={"partition": None})
    job = job.model_copy(update={"resources": resources})
    return SlurmSubmitOperator(job=job, hang_minutes=HANG_MINUTES, **options, **more)


def stop(site: Site, trigger: Any) -> None:
    """SIGSTOP to the training, in the namespace of its node."""
    causes.wait_for_step(site.workspace, RUN, trigger.directory.split("/")[-2], causes.SAVED)
    signal(site, trigger, "STOP")


def stop_until_told(site: Site, trigger: Any) -> None:
    """It goes on as soon as somebody has been told of it."""
    before, deadline = len(site.posts), time.monotonic() + 60
    stop(site, trigger)
    while len(site.posts) == before:
        assert time.monotonic() < deadline, "nobody was told of the hang"
        time.sleep(0.2)
    signal(site, trigger, "CONT")


def signal(site: Site, trigger: Any, name: str) -> None:
    node = causes.nodes_of(site.cluster, trigger.job_id)
    site.run(node, "pkill", f"-{name}", "-f", "user_script.sh")


# ---- a slurmctld that crashes


def crash(site: Site, trigger: Any) -> None:
    """It comes back with the state that it had saved before the job came, as after a crash within its last seconds."""
    causes.wait_until_running(site.cluster, trigger.job_id)
    site.cluster.kill("slurmctld")
    site.run("ctl", "sh", "-c", f"rm -rf {STATE} && cp -a {STATE}.saved {STATE}")
    site.cluster.start("slurmctld")


def save_state(site: Site) -> None:
    """What slurmctld is to know after its crash."""
    site.cluster.stop("slurmctld")
    site.run("ctl", "sh", "-c", f"rm -rf {STATE}.saved && cp -a {STATE} {STATE}.saved")
    site.cluster.start("slurmctld")
    site.cluster.wait_for_nodes()


# ---- excerpts


def excerpt(line: str, node: str = "") -> Any:
    """Makes the operator of a job that prints what a program prints in this case.

    :param node: of the excerpt, for which the job's own is put; on any other than n1 the job then ends well.
    """
    line = line.replace("'", "'\\''")
    text = f"echo '{line}'; exit 1"
    if node:
        line = line.replace(node, "'$SLURMD_NODENAME'")
        text = f"[ $SLURMD_NODENAME = n1 ] || exit 0\necho '{line}'; exit 1"
    return lambda site, options: script(site, options, text)


def gpu_log(name: str) -> Any:
    """Makes the operator of a job that prints all that gpu_causes.py's training has printed on two H100s."""
    log = (GPU_LOGS / f"{name}.log").read_text()
    return lambda site, options: script(site, options, f"cat <<'END_OF_LOG'\n{log}END_OF_LOG\nexit 1")


CASES: tuple[Case, ...] = (
    *map(of_cause, CAUSES),
    Case("module", "module load of a module that is not there", "environment", Action.STOP, "cuda/99.9", no_module),
    Case("no_rendezvous", "torch's rendezvous on a node where nobody listens", "network", Action.LATER, "(n4, 29511)",
         lambda site, options: script(site, options, f"{CLUSTER_ENV}/bin/python - <<'END'\n{NO_RENDEZVOUS}END")),
    Case("wandb_key", "wandb.init with a key that the server does not know", "token_refused", Action.STOP,
         "user is not logged in",
         lambda site, options: script(site, options, f"{CLUSTER_ENV}/bin/python - <<'END'\n{WANDB}END")),
    Case("task_limit", "execution_timeout of the task passes", "task_limit", Action.LATER, "time limit had passed",
         lambda site, options: script(site, options, "sleep 100", execution_timeout=timedelta(seconds=4))),
    Case("hang", "SIGSTOP to a training; on_hang: retry", "hang", Action.ELSEWHERE, "no output and no new step",
         lambda site, options: training(site, options, on_hang="retry"), node=True, meddle=stop,
         expects=("succeeded", ("hang",)), log="attempt-1/output.log"),
    Case("hang_reported", "SIGSTOP, and SIGCONT once it was told; on_hang: report", "hang", None, "silent for",
         training, node=True, meddle=stop_until_told, expects=("succeeded", ("hang",))),
    Case("forgotten", "slurmctld crashes and has not saved the job", "forgotten", Action.CONTINUE, "Slurm has lost",
         lambda site, options: training(site, options), prepare=save_state, meddle=crash,
         log="attempt-1/output.log"),
    Case("quota", "prints Python's word on a quota that is used up", "disk_full", Action.STOP, "Disk quota exceeded",
         excerpt("OSError: [Errno 122] Disk quota exceeded: '/shared/checkpoints/global_step_40'"), caused="excerpt"),
    Case("nccl", "prints NCCL's word on a connection that broke", "network", Action.ELSEWHERE, "NCCL WARN NET/IB",
         excerpt(BY_ID["nccl_transport"].excerpt, "gpu95"), node=True, caused="excerpt"),
    Case("nccl_timeout", "prints the log of two H100s of which one stood still", "network", Action.LATER,
         "Watchdog caught collective operation timeout", gpu_log("one_rank_stops"), caused="excerpt"),
    Case("cuda_oom", "prints the log of two H100s of which one ran out of memory", "cuda_oom", Action.STOP,
         "Tried to allocate 40.00 GiB", gpu_log("cuda_oom_on_one_rank"), caused="excerpt"),
    Case("gpu_hardware", "prints the driver's word on a broken GPU (Xid 79)", "gpu_hardware", Action.ELSEWHERE,
         "fallen off the bus", excerpt(BY_ID["xid"].excerpt, "gpu96"), node=True, caused="excerpt"),
)  # fmt: skip
