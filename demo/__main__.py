"""Command line of the demo: `python -m demo run|up|status|down|clean`. The Makefile calls it."""

from __future__ import annotations

import argparse
import shutil
import sys

from rich.console import Console

from demo import paths
from demo.run import bring_up, run_demo
from demo.services import Demo, DemoError
from testing.airflow import AirflowError
from testing.airflow_api import ApiError
from testing.local_cluster import LocalClusterError
from testing.programs import ProgramError

COMMANDS = {
    "run": "start what is down, train the tiny model once, check the result",
    "up": "start the cluster, the Hub and Airflow",
    "status": "show the state of cluster, Hub and Airflow",
    "down": "stop cluster, Hub and Airflow",
    "clean": "stop everything, delete build/ and the local cluster's files",
}


def status(demo: Demo, console: Console) -> int:
    """Print the state of cluster, Hub and Airflow.

    Returns:
        0 if all of them are up, else 1.
    """
    cluster = demo.cluster.status()
    problems = cluster.problems()
    hub = cluster.up and demo.hub.answers()
    health = demo.airflow.health() if paths.AIRFLOW_HOME.exists() else {}
    airflow = bool(health) and demo.airflow.is_up()
    parts = ", ".join(f"{name} {state}" for name, state in health.items())
    login = (
        f"{demo.airflow.url}   user admin, password {demo.airflow.password}" if airflow else parts or "down"
    )
    lines = [
        f"cluster  {'; '.join(problems) if problems else cluster.ssh}",
        f"Hub      {demo.hub.url if hub else 'down'}",
        f"Airflow  {login}",
    ]
    console.print("\n".join(lines), markup=False, highlight=False)
    return 0 if hub and airflow and not problems else 1


def dispatch(command: str, demo: Demo, console: Console) -> int:
    """Run one command and return its exit code."""
    if command == "run":
        return run_demo(demo, console)
    if command == "up":
        bring_up(demo, console)
        return status(demo, console)
    if command == "status":
        return status(demo, console)
    for line in demo.stop() or ["nothing to stop: the demo is down"]:
        console.print(line, markup=False, highlight=False)
    if command == "clean":
        demo.wipe()
        shutil.rmtree(paths.BUILD, ignore_errors=True)
    return 0


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    text = "; ".join(f"{name}: {what}" for name, what in COMMANDS.items())
    parser.add_argument("command", choices=COMMANDS, help=text, metavar="COMMAND")
    command = parser.parse_args().command
    console, errors = Console(soft_wrap=not sys.stdout.isatty()), Console(stderr=True, soft_wrap=True)
    try:
        return dispatch(command, Demo(), console)
    except (DemoError, AirflowError, ApiError, LocalClusterError, ProgramError) as error:
        errors.print(f"demo: {error}", markup=False, highlight=False)
        if command == "run":
            errors.print("`make demo` again uses what is already up; `make down` stops it", markup=False)
        return 1
    except KeyboardInterrupt:
        errors.print("\nstopped watching; the run continues in Airflow. `make down` ends it", markup=False)
        return 130


if __name__ == "__main__":
    sys.exit(main())
