"""Play a quirk: the product's operators, triggers, sweep and check on the odd cluster.

Slurm, SSH and llm-bridge are real; the task's context is that of :mod:`testing.task_context`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO
from unittest.mock import patch

from testing.local_cluster import LocalCluster
from testing.quirks.quirk import BASH, COLUMNS, FAILED, NOTHING, OK, REFUSED, WAITS, Cell, Quirk
from testing.quirks.table import NODE_NAMES, SITE, SSH_PORT, small_disk
from testing.site import Site
from testing.task_context import Task, events_at_once
from testing.waiting import until

DAG = "quirks"
# Job that is followed: output before and after a step, and a result.
JOB = """\
#!/bin/bash
echo line 1
srun bash -c 'echo srun runs on $SLURMD_NODENAME in $ATTEMPT_DIR'
sleep 2
echo '{"answer": 42}' > "$ATTEMPT_DIR/.result.json" && mv "$ATTEMPT_DIR/.result.json" "$ATTEMPT_DIR/result.json"
echo line 2
"""
LINES = ("line 1", "srun runs on ", "line 2")
RESULT = {"answer": 42}
# The same for a stage's job that finds its work done.
STAGE_LINES = ("data: ", "model: ")
STAGE_RESULT = ["data", "model"]
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
}
DATA, MODEL = "quirks/tiny", "quirks/model"
ONE_ROW = """\
sft.data.micro_batch_size_per_gpu=1
ppo.critic.ppo_micro_batch_size_per_gpu=1
ppo.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1
"""
LONG_JOB = "#!/bin/bash\nsleep 600\n"
# Start file of each shell that reads one for a command over SSH.
START_FILES = {
    "bash": ".bashrc",
    "tcsh": ".tcshrc",
    "fish": ".config/fish/config.fish",
    "zsh": ".zshenv",
}
# Programs of a site come before Slurm's own, as sshd's default PATH has it.
SITE_PROGRAMS = "/usr/local/bin"
# Timeouts that a large site needs and this machine does not.
WAIT_SECONDS = {
    "llm_bridge.slurm.poller.LOST_TIMEOUT_SECONDS": 20.0,
    "llm_bridge.slurm.poller.UNLISTED_TIMEOUT_SECONDS": 20.0,
    "llm_bridge.monitoring.log_relay.LOG_WRITE_TIMEOUT_SECONDS": 0.0,
}
# Longest wait of a cell for a condition.
LIMIT_SECONDS = 90.0
# A warning or an error, as Airflow's loggers of operators and triggers print it.
PRINTED = re.compile(r"^\S+Z \[(\w+) *\] (.*?) *\[[\w.]+\]", re.MULTILINE)
# Airflow's warning about an operator that is executed by this program.
NOT_AIRFLOW = "cannot be called outside of the Task Runner"
# Of an outcome.
MAX_TEXT = 2000


@contextmanager
def odd_cluster(log: TextIO) -> Iterator[Player]:
    """Run the cluster of the quirks in the context, with the connection that its cluster file names.

    Args:
        log: Receives the output of all tasks.
    """
    cluster = LocalCluster(SITE, ssh_port=SSH_PORT, names=NODE_NAMES)
    with small_disk(cluster), TemporaryDirectory(prefix="llm-bridge-quirks-") as folder:
        cluster.up()
        site = Site(cluster, Path(folder), hub={})
        # Each quirk changes the login node: nothing that was started there under the one before may be in use.
        with patch.dict(os.environ, {**site.environment, "LLM_BRIDGE_SESSION_IDLE_SECONDS": "0"}):
            yield Player(site, log)


@dataclass
class Submitted:
    """Task, operator and trigger of the job that is followed; None if there is none."""

    task: Any = None
    operator: Any = None
    trigger: Any = None


class Player:
    """Play quirks on one local cluster, one after the other.

    Args:
        site: The cluster, which is up, and its ``include/``.
        log: Receives all output of the tasks.
    """

    def __init__(self, site: Site, log: TextIO) -> None:
        self.site = site
        self.log = log
        self._number = 0
        self.programs = site.cluster.settings.shared_dir / "site" / "bin"
        self.programs_on = site.cluster.settings.shared_dir / "site" / "bin-first"
        self.home = site.cluster.settings.shared_dir / "home" / "svc"
        for folder in (self.programs, self.programs_on):
            folder.mkdir(parents=True, exist_ok=True)
        for host in self._hosts():
            site.run(host, "mount", "--bind", str(self._programs_of(host)), SITE_PROGRAMS)

    # ---- the quirk

    @contextmanager
    def quirk(self, quirk: Quirk) -> Iterator[None]:
        """Make the cluster odd in the context."""
        try:
            self._write_programs(quirk)
            self._set_shell(quirk.shell)
            if not quirk.greets_later:
                self._write_start_file(quirk)
            if quirk.prepare:
                quirk.prepare(self.site)
            yield
        finally:
            self._clear(quirk)

    def _clear(self, quirk: Quirk) -> None:
        try:
            if quirk.mend:
                quirk.mend(self.site)
        finally:
            self._make_usual()

    def _make_usual(self) -> None:
        for folder in (self.programs, self.programs_on):
            for program in folder.iterdir():
                program.unlink()
        for start_file in START_FILES.values():
            (self.home / start_file).unlink(missing_ok=True)
        self._set_shell(BASH)
        self.site.end_jobs()

    def _write_programs(self, quirk: Quirk) -> None:
        for folder, programs in (
            (self.programs, quirk.commands),
            (self.programs_on, {**quirk.commands, **quirk.commands_on}),
        ):
            for name, text in programs.items():
                real = shutil.which(name, path="/usr/bin:/bin") or f"/usr/bin/{name}"
                path = folder / name
                path.write_text(f"#!/bin/bash\nREAL={real}\n{text}\n")
                path.chmod(0o755)

    def _write_start_file(self, quirk: Quirk) -> None:
        if not quirk.start_file:
            return
        path = self.home / START_FILES[Path(quirk.shell).name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(quirk.start_file + "\n")

    def _set_shell(self, shell: str) -> None:
        # In place: the file is mounted on each host's.
        path = self.site.cluster.settings.etc_dir / "passwd"
        path.write_text(re.sub(r"^(svc:.*:)[^:]*$", rf"\g<1>{shell}", path.read_text(), flags=re.MULTILINE))

    def _hosts(self) -> list[str]:
        return ["login", *self.site.cluster.settings.node_names]

    def _programs_of(self, host: str) -> Path:
        return self.programs_on if host == self.site.cluster.settings.node_names[0] else self.programs

    # ---- the columns

    def play(self, quirk: Quirk, columns: Sequence[str] = COLUMNS) -> dict[str, Cell]:
        """Play all columns of a quirk and return the result of each."""
        cells: dict[str, Cell] = {}
        try:
            self._play(quirk, columns, cells)
        except Exception as error:
            traceback.print_exc(file=self.log)
            text = f"{FAILED}: the quirk could not be made or undone: {type(error).__name__}: {error}"
            cells |= {column: Cell(quirk.expects(column), text) for column in columns}
        return {column: cells[column] for column in columns}

    def _play(self, quirk: Quirk, columns: Sequence[str], cells: dict[str, Cell]) -> None:
        name = self.site.variant(quirk.name, **quirk.cluster) if quirk.cluster else self.site.name
        long_jobs: dict[str, tuple[Task, Any]] = {}
        with ExitStack() as stack:
            stack.enter_context(events_at_once())
            for target, seconds in WAIT_SECONDS.items():
                stack.enter_context(patch(target, seconds))
            if not quirk.accepts_jobs:
                for column in {"cancel", "orphan sweep"} & set(columns):
                    long_jobs[column] = self._long_job(quirk, name)
                for _, trigger in long_jobs.values():
                    self._wait_for_start(trigger)
            stack.enter_context(self.quirk(quirk))
            submitted = Submitted()

            def long_job(column: str) -> tuple[Task, Any]:
                return long_jobs.get(column) or self._long_job(quirk, name)

            acts: dict[str, Callable[[Says], str]] = {
                "check": lambda says: self._check(quirk, name, says),
                "cancel": lambda says: self._cancel(quirk, *long_job("cancel")),
                "orphan sweep": lambda says: self._sweep(name, *long_job("orphan sweep")),
                # Last, because these two may lift the quirk.
                "submit": lambda says: self._submit(quirk, name, says, submitted),
                "follow": lambda says: self._follow(quirk, says, submitted),
            }
            for column, act in acts.items():
                if column in columns:
                    cells[column] = self._cell(quirk, column, act)

    def _cell(self, quirk: Quirk, column: str, act: Callable[[Says], str]) -> Cell:
        began = time.monotonic()
        print(f"\n===== {quirk.name}: {column}", file=self.log, flush=True)
        with Says.listen(self.log) as says:
            try:
                found = act(says)
            except Exception as error:
                found = _outcome(error)
                traceback.print_exc(file=self.log)
        text = " ".join(found.split())[:MAX_TEXT]
        return Cell(quirk.expects(column), text, says.notes(), round(time.monotonic() - began, 1))

    def _task(self) -> Task:
        self._number += 1
        return Task(f"t{self._number}", dag_id=DAG, run_id="report", known=True)

    def _operator(self, task: Task, quirk: Quirk, cluster: str, script: str) -> Any:
        from llm_bridge.operators.slurm import SlurmSubmitOperator

        if quirk.stage and script == JOB:
            return SlurmSubmitOperator(task_id=task.ti.task_id, job=self._stage(task, quirk, cluster))
        return SlurmSubmitOperator(
            task_id=task.ti.task_id, cluster=cluster, script=script, sbatch=dict(quirk.sbatch)
        )

    def _stage(self, task: Task, quirk: Quirk, cluster: str) -> Any:
        """Return the job of stage prepare whose data and model are there."""
        from llm_bridge.slurm.spec import Resources, SlurmJob

        made = self.site.workspace / "made"
        for folder, source in (("data", {"source": DATA, "config": None}), ("model", {"source": MODEL})):
            path = made / folder / ".llm_bridge_source.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(source))
        (made / "model" / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        (made / "model" / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "PreTrainedTokenizerFast"}'
        )
        (made / "model" / "config.json").write_text('{"model_type": "llama"}')
        specification = {"sources": [{"source": DATA, "config": None}], "too_long": "keep"}
        settings: dict[str, Any] = {
            "data": [{"directory": f"{made}/data", "specification": specification, "stages": []}]
        }
        settings |= {"trainings": {}, "chat_templates": {}, "trust_remote_code": False}
        return SlurmJob(
            cluster=cluster,
            stage="prepare",
            template="prepare",
            settings={**settings, "base_model": MODEL, "model_dir": f"{made}/model"},
            directory=f"{self.site.workspace}/{DAG}/{task.ti.task_id}",
            resources=Resources(**quirk.sbatch),
        )

    def _long_job(self, quirk: Quirk, cluster: str) -> tuple[Task, Any]:
        """Submit a job that runs long; return its task and trigger."""
        task = self._task()
        return task, task.start(self._operator(task, quirk, cluster, LONG_JOB))

    def _wait_for_start(self, trigger: Any) -> None:
        """Wait until a job's script works; before, it would end by itself because its attempt is closed."""
        from llm_bridge.remote import attempt_dir

        started = Path(trigger.directory) / attempt_dir.STARTED
        until(started.exists, LIMIT_SECONDS, what=f"the start of job {trigger.job_id}")

    def _submit(self, quirk: Quirk, cluster: str, says: Says, submitted: Submitted) -> str:
        from llm_bridge.triggers.slurm import SlurmJobTrigger

        task = self._task()
        operator = self._operator(task, quirk, cluster, JOB)
        trigger = task.start(operator)
        waited = ""
        if not isinstance(trigger, SlurmJobTrigger):
            waited = says.notes()[-1] if says.notes() else repr(trigger)
            if not quirk.lift:
                return f"{WAITS}: {waited}"
            quirk.lift(self.site)
            trigger = task.run(operator, until="execute_complete")
        submitted.task, submitted.operator, submitted.trigger = task, operator, trigger
        jobs = self._jobs(task.store["llm_bridge_attempt"]["key"])
        if [trigger.job_id] != jobs:
            return f"{FAILED}: the task has job {trigger.job_id}, Slurm has {jobs}"
        if wrong := self._wrong_options(cluster, trigger.job_id):
            return f"{FAILED}: {wrong}"
        return f"{WAITS}: {waited}" if waited else OK

    def _follow(self, quirk: Quirk, says: Says, submitted: Submitted) -> str:
        if not submitted.trigger:
            return NOTHING
        task, operator, trigger = submitted.task, submitted.operator, submitted.trigger
        waits: list[str] = []

        def meddle(number: int, trigger: Any) -> None:
            if quirk.greets_later:
                until(lambda: self._state(trigger.job_id) != "PENDING", LIMIT_SECONDS, what="the running job")
                time.sleep(1)
                self._write_start_file(quirk)
                self.site.cluster.restart("sshd")  # the helper that reads the files has to start again
            if quirk.lift and quirk.expects("follow") != OK:
                waiting = re.compile(r"waits in the queue.*\((.*)\)")
                waits.append(until(lambda: waiting.findall(says.text()), LIMIT_SECONDS, what="a reason")[-1])
                quirk.lift(self.site)

        done = task.run(operator, meddle)
        lines = STAGE_LINES if quirk.stage else (*LINES, f" in {trigger.directory}")
        missing = [text for text in (*lines, *quirk.followed) if text not in says.text()]
        result = (done["result"] or {}).get("skipped") if quirk.stage else done["result"]
        wrong = [
            *([f"its state is {done['state']}"] if done["state"] != "COMPLETED" else []),
            *([f"its result is {result}"] if result != (STAGE_RESULT if quirk.stage else RESULT) else []),
            *([f"its log lacks {missing}"] if missing else []),
            *([f"it ran {done['run_s']} s"] if not 0 <= done["run_s"] < LIMIT_SECONDS else []),
        ]
        if wrong:
            return f"{FAILED}: {'; '.join(wrong)}"
        return f"{WAITS}: {waits[-1]}" if waits else OK

    def _cancel(self, quirk: Quirk, task: Task, trigger: Any) -> str:
        async def failed(trigger: Any) -> str:
            return "failed"

        if quirk.expects("follow") == OK:  # else the job waits in the queue
            self._wait_for_start(trigger)
        with patch("llm_bridge.triggers.base.task_state", failed):
            asyncio.run(asyncio.wait_for(trigger.on_kill(), LIMIT_SECONDS))
        state = self._state(trigger.job_id)
        return OK if state == "CANCELLED" else f"{FAILED}: the job's state is {state}"

    def _sweep(self, cluster: str, task: Task, trigger: Any) -> str:
        from llm_bridge.operators.orphans import ReapOrphansOperator

        task.ti.get_dagrun_state = lambda dag_id, run_id: "failed"
        found = {}
        for result in ("seen", "cancelled"):
            found = ReapOrphansOperator(task_id="sweep", cluster=cluster).execute(task.context)
            if trigger.job_id not in found[result]:
                return f"{FAILED}: sweep found {json.dumps(found)}, and not job {trigger.job_id} as {result}"
        state = self._state(trigger.job_id)
        return OK if state == "CANCELLED" else f"{FAILED}: the job's state is {state}"

    def _check(self, quirk: Quirk, cluster: str, says: Says) -> str:
        from llm_bridge.pipeline.check import check_site
        from llm_bridge.pipeline.plan import make_plan

        stages = ["prepare", "sft", "ppo"]
        params = {"recipe": "tiny_cpu", "cluster": cluster, "stages": stages, "nodes": quirk.nodes}
        params["overrides"] = ONE_ROW  # divides the batch of any number of nodes
        asyncio.run(check_site(make_plan(params, DAG, "report")))
        warnings = says.warnings()  # the run continues, and its jobs are pending
        return f"{WAITS}: {' '.join(warnings)}" if warnings else OK

    # ---- Slurm's view, without the quirk

    def _ask(self, *argv: str) -> str:
        return self.site.run("ctl", *argv)

    def _jobs(self, key: str) -> list[str]:
        """Return the ids of the jobs with this name, except those that slurmctld refused."""
        rows = self._ask("squeue", "-h", "-t", "all", "-o", "%i %r", "--name", key).splitlines()
        return [row.split()[0] for row in rows if "BadConstraints" not in row]

    def _state(self, job_id: str) -> str:
        return self._ask("squeue", "-h", "-t", "all", "-o", "%T", "-j", job_id).strip()

    def _wrong_options(self, cluster: str, job_id: str) -> str:
        """Return what differs between the job in Slurm and the cluster file."""
        shown = self._ask("scontrol", "show", "job", "-o", job_id)
        values = self.site.values
        wanted = {"Partition": values["partition"], "TimeLimit": "01:00:00", "MinMemoryNode": values["mem"]}
        found = {key: (re.search(rf"\b{key}=(\S+)", shown) or ["", ""])[1] for key in wanted}
        return "" if found == wanted else f"the job has {found}, the cluster file says {wanted}"


class Says:
    """Record of what operators, triggers and libraries of the product log during one cell.

    Args:
        log: Receives everything as well.
    """

    def __init__(self, log: TextIO) -> None:
        self._log = log
        self._printed = StringIO()
        self._records: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    @classmethod
    @contextmanager
    def listen(cls, log: TextIO) -> Iterator[Says]:
        """Record what is logged in the context."""
        says, logger = cls(log), logging.getLogger("llm_bridge")
        handler = logging.Handler(logging.INFO)
        handler.emit = says._record  # type: ignore[method-assign]
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            with redirect_stdout(says):  # type: ignore[type-var]
                yield says
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)

    def write(self, text: str) -> int:
        """Record printed text."""
        with self._lock:
            self._log.write(text)
            return self._printed.write(text)

    def flush(self) -> None:
        """Flush the log."""
        self._log.flush()

    def _record(self, record: logging.LogRecord) -> None:
        self._records.append((record.levelname.lower(), record.getMessage()))

    def _logged(self) -> list[tuple[str, str]]:
        logged = [*PRINTED.findall(self._printed.getvalue()), *self._records]
        return [(level, text) for level, text in logged if NOT_AIRFLOW not in text]

    def text(self) -> str:
        """Return all messages, a line each."""
        return "\n".join(text for _, text in self._logged())

    def warnings(self) -> list[str]:
        """Return the warnings and errors."""
        return [text for level, text in self._logged() if level in ("warning", "error", "critical")]

    def notes(self) -> list[str]:
        """Return what a user is told about the quirk: warnings, and a greeting that is skipped."""
        greetings = [text for _, text in self._logged() if "prints this before each answer" in text]
        return list(dict.fromkeys([*greetings, *self.warnings()]))


def _outcome(error: Exception) -> str:
    """Return the outcome for an exception: refused for one that names the cause and stops the task."""
    from llm_bridge.exceptions import ClusterUnavailable, ConfigError

    if isinstance(error, ConfigError):
        return f"{REFUSED}: {error}"
    if isinstance(error, ClusterUnavailable):
        return f"{WAITS}: {error}"
    return f"{FAILED}: {type(error).__name__}: {error}"
