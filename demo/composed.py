"""Demo run in the containers of docker-compose.yaml: trigger it, follow it, download the model and compare it.

    docker compose exec api-server python -m demo.composed

Uses the running cluster, Hub and Airflow. The exit code is 0 if the published model equals the model that the cluster
made. The report is written to AIRFLOW_HOME/demo/report.json.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from demo import report
from demo.run import Outcome, compare, print_model, train
from demo.services import DemoError, seconds_since
from demo.stages import Row
from testing.airflow_api import AirflowApi, ApiError
from testing.stack import Stack

HOME = Path(os.environ.get("AIRFLOW_HOME", "/opt/airflow"))
FOLDER = HOME / "demo"
PASSWORDS = Path("/run/secrets/web_passwords")
USER = "admin"
HUB = "http://hub:8090"


class ComposedAirflow:
    """API server of this container, and the log files of all components."""

    url = "http://localhost:8080"

    def api(self) -> AirflowApi:
        """Return a client that is logged in as `admin`.

        Raises:
            DemoError: No password of `admin`: this is not the container of the API server, for example.
        """
        try:
            password = json.loads(PASSWORDS.read_text())[USER]
        except (OSError, ValueError, KeyError) as error:
            raise DemoError(
                f"no password of user {USER} in {PASSWORDS} ({error}): run this in the container api-server, with"
                f" {USER} in WEB_PASSWORDS of .env"
            ) from error
        return AirflowApi(self.url, USER, str(password))

    def task_logs(self, dag_id: str, run_id: str, task_id: str) -> list[Path]:
        """Return the log files of a task, the oldest first."""
        folder = HOME / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        return sorted(folder.glob("attempt=*.log*"), key=lambda file: file.stat().st_mtime)


class ComposedDemo(Stack):
    """Airflow and cluster as `demo.run.train` uses them."""

    airflow = ComposedAirflow()

    def slurm(self, *argv: str, user: str = "svc") -> str:
        """Raise ``NotImplementedError``: this container has no Slurm."""
        raise NotImplementedError("this container has no Slurm")


def check_model(outcome: Outcome) -> None:
    """Download the model with an unmodified Hub client, and compare it with the cluster's files.

    Raises:
        DemoError: The run made no model, or the model cannot be downloaded.
    """
    model = outcome.model
    if not model or not model.get("repo_id"):
        raise DemoError("the run succeeded, but its summary has no model: see the log of task upload.run")
    target = FOLDER / "model"
    shutil.rmtree(target, ignore_errors=True)
    variables = {"HF_ENDPOINT": HUB, "HF_HOME": str(FOLDER / "cache"), "HF_HUB_DISABLE_XET": "1"}
    argv = [
        sys.executable,
        "-m",
        "testing.hub_client",
        "verify",
        model["repo_id"],
        model["revision"],
        str(target),
    ]
    done = subprocess.run(argv, env={**os.environ, **variables}, capture_output=True, text=True)
    if done.returncode:
        end = "\n  ".join(done.stderr.strip().splitlines()[-6:])
        raise DemoError(f"cannot download {model['repo_id']} from {HUB}:\n  {end}")
    compare(model, json.loads(done.stdout))


def run(console: Console) -> int:
    """Run the demo, write report.json in any case, and return the exit code."""
    begin = time.monotonic()
    outcome = Outcome()
    try:
        train(ComposedDemo(), console, outcome)
        if outcome.failure is None:
            check_model(outcome)
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {error}"
        raise
    finally:
        facts: dict[str, Any] = report.build(
            outcome.rows,
            outcome.model,
            time.monotonic() - begin,
            failure=outcome.failure,
            error=outcome.error,
            **outcome.more,
        )
        report.write(FOLDER / "report.json", facts)
    console.print(report.table([Row(**row) for row in facts["stages"]], facts["run_id"], with_log=False))
    if outcome.failure:
        console.print(outcome.failure.text(), markup=False, highlight=False, style="red")
    if outcome.model and outcome.model.get("repo_id"):
        print_model(console, outcome)
    console.print(f"took     {seconds_since(begin)}", highlight=False)
    return 0 if facts["model"]["verified"] else 1


def main() -> int:
    """Run the demo, print errors, and return the exit code."""
    console, errors = Console(soft_wrap=not sys.stdout.isatty()), Console(stderr=True, soft_wrap=True)
    try:
        return run(console)
    except (DemoError, ApiError) as error:
        errors.print(f"demo: {error}", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        errors.print("\nstopped watching; the run continues in Airflow", markup=False)
        return 130


if __name__ == "__main__":
    sys.exit(main())
