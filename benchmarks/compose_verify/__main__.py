"""Verification of docker-compose.yaml: `make compose-verify`, about 20 minutes.

Builds the images, starts the profile `demo`, runs the demo and stops everything; then the same with Celery, two
workers, two schedulers and two triggerers, while their containers are killed one after the other (faults.py), and the
results are compared with the documented promises (promises.py). As root on Debian without a Docker engine it starts
one, and stops it. Result: build/compose/report.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.compose_verify.command import VerifyError
from benchmarks.compose_verify.engine import Engine
from benchmarks.compose_verify.faults import WORKER_TASK, Faults
from benchmarks.compose_verify.maintenance import maintain
from benchmarks.compose_verify.network import HostNetwork
from benchmarks.compose_verify.packages import build_settings
from benchmarks.compose_verify.promises import judge, seen
from benchmarks.compose_verify.stack import LOGS, SOONER, WORKSPACE, ComposeStack, submitted_twice
from testing import paths
from testing.airflow_api import ApiError
from testing.stack import DAG

FOLDER = paths.ROOT / "build" / "compose"
SESSIONS: tuple[dict[str, Any], ...] = (
    {
        "profiles": ["demo"],
        "settings": {"EXECUTOR": "LocalExecutor", "SCHEDULERS": "1", "TRIGGERERS": "1"},
        "maintenance": True,
    },
    {
        "profiles": ["demo", "celery"],
        "settings": {"EXECUTOR": "CeleryExecutor", "SCHEDULERS": "2", "TRIGGERERS": "2", "WORKERS": "2"},
        "faults": True,
    },
)


def session(stack: ComposeStack, plan: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Start the containers, run the demo, stop them, and return the session's part of the report."""
    profiles = plan["profiles"]
    found: dict[str, Any] = {"profiles": profiles, **plan["settings"], "ok": False}
    stack.make_settings(**plan["settings"])
    stack.files = [SOONER] if plan.get("faults") else []
    try:
        found["healthy_s"] = stack.up(profiles)
        found["containers"] = len(stack.containers())
        say(f"{'+'.join(profiles)}: {found['containers']} containers healthy after {found['healthy_s']} s")
        found["versions"] = stack.versions()
        found["memory"] = stack.memory()
        run = chaos(stack, profiles, found) if plan.get("faults") else stack.demo_run(profiles)
        found |= {key: run.get(key) for key in ("run_id", "stages", "model", "wall_s")}
        found["jobs"] = stack.jobs()
        found["submitted_twice"] = submitted_twice(found["jobs"])
        found["second_attempts"] = [job for job in found["jobs"] if not job["JobName"].endswith("-1")]
        found["privileged"] = stack.privileged()
        if plan.get("maintenance"):
            found["maintenance"] = maintain(stack, profiles, str(run["run_id"]))
        # Last, because it shows that tasks still run.
        found["mail_of_failure_s"] = stack.mail_of_failure()
        found["ok"] = (
            bool(run["model"]["verified"])
            and not found["submitted_twice"]
            and not found["privileged"]
            and found.get("promises_kept", True)
        )
        say(
            f"{'+'.join(profiles)}: the run took {found['wall_s']} s, {'passed' if found['ok'] else 'FAILED'}"
        )
    except (VerifyError, ApiError) as error:
        found["error"] = str(error)
        say(f"{'+'.join(profiles)}: {error}")
    finally:
        stack.down(profiles)
    return found


def chaos(stack: ComposeStack, profiles: list[str], found: dict[str, Any]) -> dict[str, Any]:
    """Run the demo while faults are injected, and return its report; `found` gets the kept and broken promises."""
    faults = Faults(stack)
    found["promises_kept"] = False
    faults.start()
    try:
        return stack.demo_run(profiles)
    finally:
        faults.stop()
        found["faults"], found["faults_failed"] = faults.done, faults.failed
        try:  # also if the run has failed
            verdict(stack, faults, found)
        except (VerifyError, ApiError) as error:  # must not hide the run's error
            found["no_verdict"] = str(error)


def verdict(stack: ComposeStack, faults: Faults, found: dict[str, Any]) -> None:
    """Add the kept and broken promises of the newest run to `found`."""
    if not (run := stack.last_run()):
        raise VerifyError(f"Airflow has no run of the demo in {DAG}")
    folder = stack.copy("login", f"{WORKSPACE}/{DAG}/{run}", "run")
    logs = stack.copy("api-server", f"{LOGS}/dag_id={DAG}/run_id={run}", "run-logs")
    found["tries"] = stack.tries(DAG, run)
    broken = judge(folder, logs, stack.jobs(), stack.queue(), found["tries"], WORKER_TASK)
    found["promises"] = {kind: len(sentences) for kind, sentences in broken.items()}
    found["broken"] = {kind: sentences for kind, sentences in broken.items() if sentences}
    found["promises_kept"] = faults.complete and not found["broken"]
    found["logs"] = seen(folder, logs)


def verify(run_with: list[str], keep: bool, sessions: list[dict[str, Any]], report: dict[str, Any]) -> None:
    """Run the verification and write the results into `report`."""

    def say(text: str) -> None:
        print(f"compose-verify: {text}", flush=True)

    logs = FOLDER / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    engine = Engine(paths.home() / "compose-verify", logs)
    try:
        with engine:
            report["versions"] = engine.versions()
            report["engine_started_here"], report["base_image"] = engine.own, engine.base_from
            say(f"engine {report['versions']['engine']}, base image {engine.base_from}")
            stack = ComposeStack(engine.compose, FOLDER, run_with)
            stack.make_settings()
            with build_settings(FOLDER) as more:
                report["images"] = stack.build(more)
            for name, image in report["images"].items():
                say(f"image {name}: {image['mb']} MB, built in {image['build_s']} s")
            for plan in sessions:
                report["sessions"].append(session(stack, plan, say))
            if not keep and not engine.own:
                stack.remove_images()
    finally:
        if engine.own:
            report["network"] = {"before": engine.before.as_dict(), "after": HostNetwork().as_dict()}
            if not keep:
                engine.wipe()


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compose_verify", description=__doc__)
    parser.add_argument(
        "--run-with",
        default="",
        metavar="COMMAND",
        help="prefix of each demo run, such as nice or flock FILE",
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the images, so that the next build takes seconds"
    )
    parser.add_argument("--only", choices=("demo", "celery"), help="one of the two sessions")
    given = parser.parse_args()
    sessions = [plan for plan in SESSIONS if given.only in (None, plan["profiles"][-1])]
    begin = time.monotonic()
    report: dict[str, Any] = {"sessions": []}
    try:
        verify(shlex.split(given.run_with), given.keep, sessions, report)
    except VerifyError as error:
        report["error"] = str(error)
        print(f"compose-verify: {error}", file=sys.stderr)
    finally:
        network = report.get("network", {})
        report["ok"] = (
            "error" not in report
            and len(report["sessions"]) == len(sessions)
            and all(found["ok"] for found in report["sessions"])
            and network.get("before") == network.get("after")
        )
        report["wall_s"] = round(time.monotonic() - begin, 1)
        FOLDER.mkdir(parents=True, exist_ok=True)
        path: Path = FOLDER / "report.json"
        path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"compose-verify: {'passed' if report['ok'] else 'FAILED'}, {path}")
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
