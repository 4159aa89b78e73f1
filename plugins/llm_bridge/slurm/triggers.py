"""Waiting for a Slurm job without holding a worker slot."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import PurePosixPath
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from llm_bridge.config.hang import Hang
from llm_bridge.config.load import load_cluster
from llm_bridge.slurm.cancel import CANCEL_SECONDS, go_on, patiently, to_the_end, until_closed
from llm_bridge.slurm.hang import Followed, HangWatch, notice_of
from llm_bridge.slurm.output import Output
from llm_bridge.slurm.queued import QueueWatch
from llm_bridge.slurm.watcher import Update, watcher_for
from llm_bridge.transport import connect

# A trigger that fires right after its task deferred fails the task: the scheduler may see the event before
# the worker's exit (airflow#66374, #67287; 3 of 16 tasks on 3.3.2, none with 5 s).
EARLIEST_EVENT_SECONDS = 5.0
TERMINAL = {"success", "failed", "skipped", "removed", "upstream_failed"}
# A trigger that Airflow has moved to another triggerer is ended where it was, too, maybe when the task has gone on and
# succeeded. Who cannot tell that from "the user has marked it success" takes these alone for the user's word.
ENDED_BY_USER = TERMINAL - {"success"}


class SlurmJobTrigger(BaseTrigger):
    """Follow one Slurm job: its output goes into the task's log, its end becomes the event.

    Cancels the job when the user marks the task (``on_kill``) and when ``deadline`` passes, which Airflow
    itself does not watch while a task is deferred (airflow#69678). Never on a restart of the triggerer.

    :param cluster: name of the cluster file.
    :param job_id: Slurm's id.
    :param directory: the attempt's directory on the cluster.
    :param ready_file: fire as soon as this JSON file is there, while the job goes on (a Ray cluster).
    :param deadline: epoch seconds; None for no limit.
    :param cancel_on_kill: False for a sensor, which watches a job that belongs to another task.
    :param hang: :class:`~llm_bridge.config.hang.Hang` as a dict: when the job counts as hung; None for never.
    """

    def __init__(
        self,
        cluster: str,
        job_id: str,
        directory: str,
        ready_file: str | None = None,
        deadline: float | None = None,
        cancel_on_kill: bool = True,
        hang: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.cluster = cluster
        self.job_id = job_id
        self.directory = directory
        self.ready_file = ready_file
        self.deadline = deadline
        self.cancel_on_kill = cancel_on_kill
        self.hang = hang
        self._said = ""
        self._output: Output | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "llm_bridge.slurm.triggers.SlurmJobTrigger",
            {
                "cluster": self.cluster,
                "job_id": self.job_id,
                "directory": self.directory,
                "ready_file": self.ready_file,
                "deadline": self.deadline,
                "cancel_on_kill": self.cancel_on_kill,
                "hang": self.hang,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        began = time.monotonic()
        try:
            async with asyncio.timeout(
                None if self.deadline is None else max(0.0, self.deadline - time.time())
            ):
                event = await self.outcome()
        except TimeoutError:
            event = await self._too_late()
        await asyncio.sleep(max(0.0, began + EARLIEST_EVENT_SECONDS - time.monotonic()))
        yield TriggerEvent(event)

    async def outcome(self) -> dict[str, Any]:
        """Follow the job to its end, or until it is ready; the event's payload."""
        found: dict[str, Any] = {}
        output = self._output = Output(self, f"{self.directory}/output.log")
        cluster = await asyncio.to_thread(load_cluster, self.cluster)
        name = f"Slurm job {self.job_id}"
        job = Followed.by(self, output, self.cluster, self.job_id, self.directory, name)
        watched = HangWatch(Hang(**self.hang) if self.hang else None, job, lambda: self._cancel(None))
        following = watcher_for(cluster).follow(
            self.job_id,
            self.directory,
            (self.ready_file,) if self.ready_file else (),
            note=output.note,
            resume=output.resume,
            pulse=watched.look,
        )
        async with aclosing(following) as updates, watched, QueueWatch(job) as queued:
            async for update in updates:
                output.show(update)
                self._tell(update)
                if update.info:
                    watched.state(update.info)
                    await queued.state(update.info)
                found |= {name: content for name, content in update.files.items() if content is not None}
                ready = bool(self.ready_file and self.ready_file in found)
                if ready or update.ended:
                    await output.written()
                    return self._payload(update, found, output.last, ready=ready, hang=watched.found)
        raise AssertionError("the watcher ended without a last update")

    def _tell(self, update: Update) -> None:
        if update.notice:
            self.log.warning("%s", update.notice)
        if update.info:
            why = f" ({update.info.reason})" if update.info.reason else ""
            where = f" on {update.info.nodes}" if update.info.nodes else ""
            sentence = f"Slurm job {self.job_id} {update.info.meaning.meaning}{where}{why}"
            if sentence != self._said:
                self.log.info("%s", sentence)
            self._said = sentence

    def _payload(
        self, update: Update, found: dict[str, Any], last_lines: list[str], *, ready: bool, hang: Any
    ) -> dict[str, Any]:
        return {
            "job_id": self.job_id,
            "cluster": self.cluster,
            "directory": self.directory,
            "ready": ready,
            "ready_file": self.ready_file,
            "info": update.info.as_dict() if update.info else None,
            "notice": notice_of(hang) or update.notice,
            "result": found.get(self.ready_file or "") if ready else found.get("result.json"),
            "reason": found.get("reason.json"),
            "last_lines": last_lines,
            "hang": hang,
        }

    async def _too_late(self) -> dict[str, Any]:
        event: dict[str, Any]
        self.log.warning("the task's own time limit has passed")
        if self.cancel_on_kill:
            await self._cancel(None)
        event = {"job_id": self.job_id, "cluster": self.cluster, "directory": self.directory, "ready": False}
        event |= {"ready_file": self.ready_file, "cancelled": self.cancel_on_kill}
        return {**event, "info": None, "result": None, "reason": None, "last_lines": [], "notice": "timeout"}

    async def on_kill(self) -> None:
        """The user marked or cleared the task, or the run failed or timed out.

        Airflow 3.3.2 also calls this when the trigger moves to another triggerer (airflow#73454), and late
        after a clear, when the next try may have adopted the job. So ask what became of the task first.
        """
        if self.cancel_on_kill:
            await to_the_end(self._killed())

    async def _killed(self) -> None:
        state = await task_state(self)
        if state not in TERMINAL:
            self.log.info("the task is %s: Slurm job %s is left alone", state, self.job_id)
            return
        self.log.info("the task was marked %s", state)
        await self._cancel(CANCEL_SECONDS)

    async def _cancel(self, patience: float | None) -> None:
        done, _ = await asyncio.wait({go_on(self._end_job())}, timeout=patience)
        if not done:
            self.log.warning("Slurm job %s has not ended yet: cancelling it goes on", self.job_id)

    async def _end_job(self) -> None:
        if not await patiently(self._is_ours):
            # So the task may have gone on: this one is "marked success" because that other one saw the job ready.
            self.log.info("another triggerer has followed Slurm job %s since: it is left alone", self.job_id)
            return
        self.log.info("cancelling Slurm job %s", self.job_id)
        # Closed as well: a slurmctld that crashes just now forgets the end of the job, and starts it again.
        await until_closed(self.cluster, str(PurePosixPath(self.directory).parent))
        self.log.info("Slurm job %s is gone", self.job_id)

    async def _is_ours(self) -> bool:
        note = self._output.note if self._output else None
        if not self._output or not note:
            return True
        cluster = await asyncio.to_thread(load_cluster, self.cluster)
        async with connect(cluster) as transport:
            path = f"{self.directory}/follower.{note['try']}.json"
            held = await transport.run(["cat", "--", path])
            return self._output.is_mine(json.loads(held.stdout) if held.code == 0 else None)


async def task_state(trigger: BaseTrigger) -> str | None:
    """What the API says of the task that ``trigger`` waits for; None while it has no state."""
    return await sync_to_async(state_of_task)(trigger.task_instance)


def state_of_task(ti: Any) -> str | None:
    """What the API says of a task instance now; None while it has no state."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states = RuntimeTaskInstance.get_task_states(
        dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
    )
    # A mapped task's key carries its index.
    return next((str(s) for key, s in states.get(ti.run_id, {}).items() if key.startswith(ti.task_id)), None)
