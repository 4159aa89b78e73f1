"""submitit's watcher on the login node: one sacct for all jobs, less often the longer they run.

submitit has no remote part: program and jobs share the login node. Its jobs are Python functions; here plain scripts,
so that all sides run the same.
"""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

from submitit.slurm.slurm import SlurmInfoWatcher

from benchmarks.bench.watchers import protocol


def watch(request: dict[str, Any]) -> None:
    """Submit the jobs and wait for all of them."""
    watcher, jobs = SlurmInfoWatcher(), []
    for number in range(len(request["offsets"])):
        argv = ["sbatch", "--parsable", "--output=/dev/null"]
        text = protocol.script(request, number)
        job = subprocess.run(argv, input=text, capture_output=True, text=True, check=True).stdout.strip()
        watcher.register_job(job)
        jobs.append(job)
    protocol.say("submitted")
    noticed: set[int] = set()
    while len(noticed) < len(jobs):
        for number, job in enumerate(jobs):
            if number not in noticed and watcher.is_done(job):  # asks sacct when its delay has passed
                noticed.add(number)
                protocol.noticed(number)
        time.sleep(0.1)


if __name__ == "__main__":
    os.environ.setdefault("USER", "svc")
    watch(protocol.read_request())
    protocol.stay()
