"""Health check of the component in this container, run by Docker every 30 s: exit code 0 if it is healthy.

    health.py api-server | scheduler | triggerer | dag-processor | worker

Checks the same as `airflow jobs check` and `celery inspect ping` without importing Airflow, which takes 4 s of a core.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

# Maximum age of a heartbeat, similar to Airflow's thresholds. They are written every 5 s, later on a busy machine.
SECONDS = 60
JOB_TYPES = {"scheduler": "SchedulerJob", "triggerer": "TriggererJob", "dag-processor": "DagProcessorJob"}
HERE = Path(__file__).parent
DATABASE = ["postgresql", "airflow", "database_password", "database:5432/airflow"]
BROKER = ["redis", "", "redis_password", "redis:6379/0"]


def secret_url(arguments: list[str]) -> str:
    """Return the output of `url`."""
    return subprocess.run([HERE / "url", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def api_server() -> str | None:
    """Return the API server's problem; None if it is healthy."""
    with urllib.request.urlopen("http://localhost:8080/api/v2/monitor/health", timeout=8) as answer:
        state = json.load(answer)["metadatabase"]["status"]
    return None if state == "healthy" else f"database {state}"


def heartbeat(job_type: str) -> str | None:
    """Return the problem of a component that writes heartbeats into the table `job`; None if it is healthy."""
    import psycopg

    with psycopg.connect(secret_url(DATABASE), connect_timeout=8) as connection:
        row = connection.execute(
            "SELECT extract(epoch FROM now() - max(latest_heartbeat)) FROM job"
            " WHERE job_type = %s AND hostname = %s AND state = 'running'",
            (job_type, socket.getfqdn()),
        ).fetchone()
    if row is None or row[0] is None:
        return f"no running {job_type} on {socket.getfqdn()} in table job"
    return None if row[0] < SECONDS else f"last heartbeat {row[0]:.0f} s ago"


def worker() -> str | None:
    """Return the Celery worker's problem; None if it is healthy."""
    from celery import Celery

    name = f"celery@{socket.gethostname()}"
    answers = Celery(broker=secret_url(BROKER)).control.ping(destination=[name], timeout=5)
    return None if answers else f"no answer from {name}"


def main() -> int:
    """Print the component's problem, if any, and return the exit code."""
    component = sys.argv[1]
    try:
        if component == "api-server":
            wrong = api_server()
        elif component == "worker":
            wrong = worker()
        else:
            wrong = heartbeat(JOB_TYPES[component])
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        print(f"{component}: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
