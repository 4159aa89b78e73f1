"""Keep what the run page shows of a followed job in Airflow's database, where the API server finds it.

While the job runs, its trigger stores an XCom of the task (LIVE_XCOM) at a bounded rate. An XCom is deleted when the
task starts again, so the task itself keeps each attempt in its state store (``monitoring/history.py``).
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from airflow.sdk.execution_time.xcom import XCom
from airflow.triggers.base import BaseTrigger
from asgiref.sync import sync_to_async

from llm_bridge.monitoring.curves import Curves
from llm_bridge.monitoring.log_relay import LogRelay
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Outcome, Started
from llm_bridge.remote.messages import Measures
from llm_bridge.slurm.poller import JobUpdate
from llm_bridge.slurm.status import JobInfo, Phase

LIVE_XCOM = "llm_bridge_live"
# Seconds between two writes of the XCom; more for many curves, so that a write is at most this many bytes a second.
WRITE_INTERVAL_SECONDS = 10.0
BYTES_PER_SECOND = 20_000


class RunRecord:
    """Record of one followed job: its state in the queue, its step, its curves.

    An error in here never ends the trigger.

    Args:
        trigger: The trigger; outside of a triggerer the record is kept, and written nowhere.
        directory: The attempt's directory.
        relay: The relay of its output, which has its progress.
    """

    # Files of the attempt to follow besides the trigger's own.
    files = (attempt_dir.STARTED,)

    def __init__(self, trigger: BaseTrigger, directory: str, relay: LogRelay) -> None:
        self._trigger, self._relay = trigger, relay
        self._ti: Any = getattr(trigger, "task_instance", None)
        self._values: dict[str, Any] = {"directory": directory}
        self._curves = Curves()
        # A Ray job's record gets the updates of two followed jobs.
        self._lock = asyncio.Lock()
        self._changed = False
        self._written = 0.0
        self._interval = WRITE_INTERVAL_SECONDS

    async def load(self) -> dict[str, int]:
        """Continue the record of an earlier trigger of this attempt; return the offsets from which to read measures."""
        if self._ti is not None:
            try:
                # Positional arguments and keywords as XCom.get_one takes them.
                found = await sync_to_async(XCom.get_one)(
                    key=LIVE_XCOM,
                    dag_id=self._ti.dag_id,
                    task_id=self._ti.task_id,
                    run_id=self._ti.run_id,
                    map_index=self._ti.map_index,
                )
                if isinstance(found, dict) and found.get("directory") == self._values["directory"]:
                    self._curves = Curves.from_json(found.pop("curves"), found.pop("offsets"))
                    self._values = found
            except Exception as error:
                self._trigger.log.warning("the run page has no earlier part of the curves: %s", error)
        return dict(self._curves.offsets)

    async def take(self, update: JobUpdate, *, last: bool = False) -> None:
        """Record an update of the job, and write the record if it is time, or the update is the last one."""
        async with self._lock:
            try:
                await self._take(update, last)
            except Exception as error:  # metrics are of verl and of the user's loggers
                self._trigger.log.warning("the run page lacks a part of this job: %s", error)

    async def _take(self, update: JobUpdate, last: bool) -> None:
        before = json.dumps(self._values)
        if update.info:
            self._take_info(update.info)
        started = attempt_dir.parse(Started, update.files.get(attempt_dir.STARTED))
        if started:
            self._values |= {
                "started": started.started,
                "nodes": started.nodes,
                "partition": started.partition,
            }
        outcome = attempt_dir.parse(Outcome, update.files.get(attempt_dir.OUTCOME))
        if outcome:
            self._values["ended"] = outcome.ended
            if outcome.started:
                self._values["started"] = outcome.started
        if progress := self._relay.progress:
            self._values["progress"] = progress
        # In a thread: a training's backlog would block the triggerer's loop.
        grown = bool(update.measures) and await asyncio.to_thread(self._curves.read, update.measures)
        self._changed = self._changed or grown or json.dumps(self._values) != before
        if self._changed and (update.end or last or time.monotonic() - self._written >= self._interval):
            await self._write()

    def _take_info(self, info: JobInfo) -> None:
        pending = info.phase is Phase.WAITING
        self._values |= {
            "state": info.state,
            "reason": info.reason if pending else "",
            "expected_start": None,
        }
        if info.nodes:
            self._values["nodes"] = info.nodes
        # Times of the cluster's clock, without a time zone: only their differences count.
        if pending and info.expected_wait is not None:
            self._values["expected_start"] = round(time.time() + info.expected_wait - info.waited)
        if info.phase is Phase.ENDED:
            self._values.setdefault("ended", time.time())

    async def take_gpu_use(self, measures: dict[str, Measures]) -> None:
        """Record the use of GPUs that is measured in the Slurm job of a Ray job's cluster."""
        use = {name: part for name, part in measures.items() if name.startswith(attempt_dir.GPU_USE)}
        if use:
            await self.take(JobUpdate(measures=use))

    async def _write(self) -> None:
        if self._ti is None:
            return
        value = {
            **self._values,
            "updated": round(time.time(), 1),
            "offsets": self._curves.offsets,
            "curves": self._curves.to_json(),
        }
        size = len(json.dumps(value))
        self._written, self._changed = time.monotonic(), False
        self._interval = max(WRITE_INTERVAL_SECONDS, size / BYTES_PER_SECOND)
        try:
            await sync_to_async(XCom.set)(
                LIVE_XCOM,
                value,
                dag_id=self._ti.dag_id,
                task_id=self._ti.task_id,
                run_id=self._ti.run_id,
                map_index=self._ti.map_index,
            )
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._trigger.log.warning("the run page has no newer state of this job: %s", error)
