"""Airflow's SSHRemoteJobOperator with ``sbatch --wait``, and its trigger, in one process like a triggerer."""

from __future__ import annotations

import asyncio
from typing import Any

from airflow.providers.ssh.operators.ssh_remote_job import SSHRemoteJobOperator

from benchmarks.bench.watchers import protocol
from testing.task_context import Task


def submit(request: dict[str, Any], number: int) -> Any:
    """Execute the operator up to its deferral, and return its trigger."""
    folder = request["folder"]
    command = f"sbatch --wait --output=/dev/null {folder}/job.{number}"
    if request.get("loud"):  # sbatch does not pass the job's output on
        command = f"srun --quiet --mem=100M --time=60 bash {folder}/job.{number}"
    with open(f"{folder}/job.{number}", "w") as file:
        file.write(protocol.script(request, number))
    operator = SSHRemoteJobOperator(
        task_id=f"job{number}", ssh_conn_id=request["ssh_conn_id"], command=command, remote_os="posix"
    )
    return Task(f"job{number}", dag_id="bench", run_id=folder.rpartition("/")[2]).start(operator)


async def watch(triggers: list[Any]) -> None:
    """Run the triggers until all have fired."""

    async def notice(number: int, trigger: Any) -> None:
        async for event in trigger.run():
            if event.payload.get("done"):
                assert event.payload["exit_code"] == 0, event.payload
                break
        protocol.noticed(number)

    waiting = [asyncio.create_task(notice(*each)) for each in enumerate(triggers)]
    protocol.say("submitted")
    await asyncio.gather(*waiting)


if __name__ == "__main__":
    asked = protocol.read_request()
    deferred = [submit(asked, number) for number in range(len(asked["offsets"]))]
    asyncio.run(watch(deferred))
    protocol.stay()
