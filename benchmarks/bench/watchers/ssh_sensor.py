"""Airflow's SSHOperator runs sbatch, and a sensor of the usual kind asks squeue about its job over SSH.

Sensors in mode ``reschedule`` with Airflow's default interval of 60 s. Threads stand in for the worker processes, and
nothing schedules them, so an Airflow would be slower.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from airflow.providers.ssh.hooks.ssh import SSHHook

from benchmarks.bench.watchers import protocol

POKE_SECONDS = 60.0
# Worker slots for sensors; Airflow's default parallelism is 32.
SLOTS = 8


def command(request: dict[str, Any], line: str) -> str:
    """Run a command over a connection of its own, as SSHOperator does."""
    hook = SSHHook(ssh_conn_id=request["ssh_conn_id"])
    with hook.get_conn() as client:
        code, out, err = hook.exec_ssh_client_command(
            client, line, get_pty=False, environment=None, timeout=60
        )
    if code:
        raise RuntimeError(err.decode())
    return str(out.decode())


def submit(request: dict[str, Any], number: int) -> str:
    """Submit one job and return its id."""
    path = f"{request['folder']}/job.{number}"
    with open(path, "w") as file:
        file.write(protocol.script(request, number))
    return command(request, f"sbatch --parsable --output=/dev/null {path}").strip()


def watch(request: dict[str, Any], jobs: list[str]) -> None:
    """Poke for each job every POKE_SECONDS until it has left the queue."""
    noticed: set[int] = set()

    def poke(number: int) -> None:
        if not command(
            request, f"squeue -h -t PD,R,CG -u $USER -o %i | grep -x {jobs[number]} || true"
        ).strip():
            noticed.add(number)
            protocol.noticed(number)

    # Each sensor's own rhythm: they did not begin at the same moment.
    due = {number: time.time() + POKE_SECONDS * number / len(jobs) for number in range(len(jobs))}
    with ThreadPoolExecutor(SLOTS) as slots:
        while len(noticed) < len(jobs):
            now = time.time()
            for number in [number for number in due if due[number] <= now and number not in noticed]:
                due[number] = now + POKE_SECONDS
                slots.submit(poke, number)
            time.sleep(0.1)


if __name__ == "__main__":
    asked = protocol.read_request()
    submitted = [submit(asked, number) for number in range(len(asked["offsets"]))]
    protocol.say("submitted")
    watch(asked, submitted)
    protocol.stay()
