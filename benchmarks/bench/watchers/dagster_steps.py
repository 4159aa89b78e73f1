"""dagster-slurm: its SSH pool submits, and its pipes client waits for each job with its own loop and defaults.

``_wait_for_job_with_streaming`` is what a Dagster step process runs from submission to end; one thread a job stands in
for the process, without Dagster's own start of 100 processes.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from dagster_slurm import SlurmResource
from dagster_slurm.helpers.ssh_pool import SSHConnectionPool
from dagster_slurm.launchers.script import BashLauncher
from dagster_slurm.pipes_clients.slurm_pipes_client import SlurmPipesClient
from dagster_slurm.resources.slurm import SlurmQueueConfig
from dagster_slurm.resources.ssh import SSHConnectionResource

from benchmarks.bench.watchers import protocol

TRIES = 10


class Reader:
    """Stands in for the reader of Dagster's messages: these jobs send none."""


def submit(pool: SSHConnectionPool, line: str) -> int:
    """Submit one job and return its id; a refused connection is tried again, where a Dagster step would fail."""
    for _ in range(TRIES):
        try:
            return int(pool.run(line).strip())
        except RuntimeError:
            time.sleep(1)
    return int(pool.run(line).strip())


def watch(request: dict[str, Any]) -> None:
    """Submit the jobs and wait for all of them."""
    ssh = SSHConnectionResource(
        host=request["host"],
        port=request["port"],
        user=request["login"],
        key_path=request["key_file"],
        host_key_checking="off",
    )
    slurm = SlurmResource(ssh=ssh, queue=SlurmQueueConfig(), remote_base=request["folder"])
    folder = request["folder"]

    def wait(number: int, job: int) -> None:
        client = SlurmPipesClient(slurm_resource=slurm, launcher=BashLauncher())
        with SSHConnectionPool(ssh) as own:
            client._wait_for_job_with_streaming(job, own, folder, Reader())
        protocol.noticed(number)

    with SSHConnectionPool(ssh) as pool:
        jobs = []
        for number in range(len(request["offsets"])):
            with open(f"{folder}/job.{number}", "w") as file:
                file.write(protocol.script(request, number))
            line = f"cd {folder} && sbatch --parsable --output=slurm-%j.out --error=slurm-%j.err job.{number}"
            jobs.append(submit(pool, line))
        threads = [
            threading.Thread(target=wait, args=(number, job), daemon=True) for number, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        protocol.say("submitted")
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    watch(protocol.read_request())
    protocol.stay()
    os._exit(0)  # threads that read logs may hang at the end
