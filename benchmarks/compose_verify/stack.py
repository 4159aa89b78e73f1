"""The composed stack as its users handle it: build, up, demo run, down."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.compose_verify.command import VerifyError, logged, output
from testing.airflow import free_port
from testing.airflow_api import AirflowApi
from testing.paths import ROOT
from testing.stack import CLUSTER, DAG, RECIPE, RUN_PREFIX, Stack

SOONER = Path(__file__).parent / "sooner.yaml"
LOGS, WORKSPACE = "/opt/airflow/logs", "/var/tmp/llm-bridge/clusters/local/shared/workspace"
PROJECT = "llm-bridge-verify"
IMAGES = {"airflow": "migrate", "cluster": "ctl", "stores": "database"}
BUILD_SECONDS, UP_SECONDS, RUN_SECONDS, MAIL_SECONDS = 3600, 900, 2400, 120
COLUMNS = ("JobID", "JobName", "State", "Start", "End")
# Final states after which llm-bridge submits another attempt.
WORTH_A_RETRY = ("FAILED", "NODE_FAIL", "TIMEOUT", "PREEMPTED", "OUT_OF_MEMORY")


def submitted_twice(jobs: list[dict[str, str]]) -> list[str]:
    """Return the names of duplicate jobs: a second one of a name, or an attempt after one that had not failed.

    Args:
        jobs: Result of `ComposeStack.jobs`; names end in the number of the attempt.
    """
    seen: dict[str, dict[str, str]] = {}
    wrong = []
    for job in jobs:
        key, _, attempt = job["JobName"].rpartition("-")
        last = seen.get(f"{key}-{int(attempt) - 1}")
        # Slurm's times can be compared as text.
        follows = last and last["State"] in WORTH_A_RETRY and last["End"] <= job["Start"]
        if job["JobName"] in seen or (attempt != "1" and not follows):
            wrong.append(job["JobName"])
        seen[job["JobName"]] = job
    return wrong


class ComposeStack(Stack):
    """Compose project with its own settings, independent of other projects.

    Args:
        compose: Command line of Compose.
        folder: Folder for .env, keys and logs; below the repository.
        run_with: Prefix of the command that runs the demo.
    """

    def __init__(self, compose: list[str], folder: Path, run_with: list[str]) -> None:
        self.folder, self.run_with = folder, run_with
        self.env_file = folder / "verify.env"
        # Free ones, because the default ports may be in use.
        self.ports = {name: free_port(0) for name in ("WEB_PORT", "HUB_PORT", "MAIL_PORT")}
        # Containers cannot have a higher limit than Docker.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        nofile = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
        place = folder.relative_to(ROOT)
        self.settings = {
            **{name: str(port) for name, port in self.ports.items()},
            "NOFILE": str(nofile),
            "SSH_DIR": f"./{place}/secrets/ssh",
            "SSH_HOST_KEY_FILE": f"./{place}/secrets/ssh_host_ed25519_key",
            **{f"{name.upper()}_IMAGE": f"{PROJECT}-{name}" for name in IMAGES},
        }
        self.compose = [*compose, "--project-name", PROJECT, "--project-directory", str(ROOT)]
        self.compose += ["--env-file", str(self.env_file), "-f", str(ROOT / "docker-compose.yaml")]
        # Additional Compose files of one session.
        self.files: list[Path] = []

    # ---- settings and images

    def make_settings(self, **more: str) -> None:
        """Make .env with the documented command."""
        argv: list[str | Path] = [sys.executable, ROOT / "docker" / "make_env.py", "--file", self.env_file]
        for name, value in {**self.settings, **more}.items():
            argv += ["--set", f"{name}={value}"]
        output(argv)

    def build(self, more: Path | None) -> dict[str, dict[str, Any]]:
        """Build all images, and return seconds and size of each."""
        files = ["-f", str(more)] if more else []
        found = {}
        for name, service in IMAGES.items():
            begin = time.monotonic()
            argv = [*self.compose, *files, "--profile", "demo", "build", "--progress", "plain", service]
            try:
                logged(argv, self.folder / "logs" / f"build-{name}.log", BUILD_SECONDS, ROOT)
            except VerifyError as error:
                # Compose 2.40 has the flag before the command.
                if "unknown flag" not in str(error):
                    raise
                argv = [part for part in argv if part not in ("--progress", "plain")]
                logged(argv, self.folder / "logs" / f"build-{name}.log", BUILD_SECONDS, ROOT)
            size = output(["docker", "image", "inspect", "--format", "{{.Size}}", f"{PROJECT}-{name}"])
            found[name] = {"build_s": round(time.monotonic() - begin, 1), "mb": round(int(size) / 1e6)}
        return found

    def remove_images(self) -> None:
        """Delete the built images."""
        output(["docker", "image", "rm", "--force", *(f"{PROJECT}-{name}" for name in IMAGES)])

    # ---- one session

    def up(self, profiles: list[str]) -> float:
        """Start the containers of some profiles, and return the seconds until all were healthy."""
        begin = time.monotonic()
        logged(
            [*self.called(profiles), "up", "--detach", "--wait", "--no-build"],
            self.folder / "logs" / f"up-{'-'.join(profiles)}.log",
            UP_SECONDS,
            ROOT,
        )
        return round(time.monotonic() - begin, 1)

    def down(self, profiles: list[str]) -> None:
        """Stop the containers and delete their volumes; the logs of containers and tasks are kept."""
        name = "-".join(profiles)
        with (self.folder / "logs" / f"containers-{name}.log").open("w") as log:
            subprocess.run([*self.called(profiles), "logs", "--no-color"], stdout=log, stderr=log, cwd=ROOT)
        # These have the causes of failed tries.
        with contextlib.suppress(VerifyError):
            self.copy("api-server", LOGS, f"tasks-{name}")
        argv = [*self.called(profiles), "down", "--volumes", "--remove-orphans"]
        logged(argv, self.folder / "logs" / f"down-{name}.log", UP_SECONDS, ROOT)

    def demo_run(self, profiles: list[str]) -> dict[str, Any]:
        """Run the demo with the documented command, and return its report.

        Raises:
            VerifyError: The run failed, or the published model differs from the cluster's.
        """
        argv = [
            *self.run_with,
            *self.called(profiles),
            "exec",
            "-T",
            "api-server",
            "python",
            "-m",
            "demo.composed",
        ]
        logged(argv, self.folder / "logs" / f"run-{'-'.join(profiles)}.log", RUN_SECONDS, ROOT)
        found: dict[str, Any] = json.loads(self.inside("api-server", "cat", "/opt/airflow/demo/report.json"))
        return found

    def jobs(self) -> list[dict[str, str]]:
        """Return all jobs of Slurm's accounting, the oldest first.

        A slurmctld that was killed may give the id of a job that it has lost to another one, so a job is identified by
        id and name. Of a job that was requeued the last run is returned.
        """
        printed = self.slurm(
            "sacct", "--allusers", "--allocations", "--duplicates", "--noheader", "--parsable2",
            f"--format={','.join(COLUMNS).replace('JobName', 'JobName%200')}",
        )  # fmt: skip
        records = [dict(zip(COLUMNS, line.split("|"), strict=True)) for line in printed.splitlines()]
        return list({(job["JobID"], job["JobName"]): job for job in records}.values())

    def slurm(self, *argv: str, user: str = "root") -> str:
        """Run a Slurm command in the controller's container and return its output."""
        return self.inside("ctl", *argv)

    def copy(self, service: str, path: str, name: str) -> Path:
        """Copy a folder of a container to the logs of this verification."""
        target = self.folder / "logs" / name
        shutil.rmtree(target, ignore_errors=True)
        output([*self.called(["demo", "celery"]), "cp", f"{service}:{path}", target])
        return target

    def last_run(self) -> str | None:
        """Return the newest run of the demo."""
        runs = self.api.ask("GET", f"/api/v2/dags/{DAG}/dagRuns", params={"order_by": "-run_after"})
        names = [str(run["dag_run_id"]) for run in runs["dag_runs"]]
        return next((name for name in names if name.startswith(RUN_PREFIX)), None)

    def lines_shown(self, dag: str, run: str, task: str) -> int:
        """Return the number of lines of its job's output in a task's log."""
        folder = f"{LOGS}/dag_id={dag}/run_id={run}/task_id={task}"
        counts = self.inside("api-server", "sh", "-c", 'grep -rhc "output.log:" "$1" || true', "sh", folder)
        return sum(map(int, counts.split()))

    def mail_of_failure(self) -> float:
        """Trigger a run that `check` refuses, and return the seconds until the mailbox has an alert about it.

        Raises:
            VerifyError: There is none after 120 s.
        """
        begin, run = time.monotonic(), f"refused-{time.time():.0f}"
        # More nodes than the cluster has; no job is submitted.
        self.api.trigger(DAG, {"recipe": RECIPE, "cluster": CLUSTER, "nodes": 99}, run)
        page = f"http://127.0.0.1:{self.ports['MAIL_PORT']}/"
        while run not in httpx.get(page, trust_env=False).text:
            if time.monotonic() - begin > MAIL_SECONDS:
                raise VerifyError(f"no mail about the failed run {run} at {page}")
            time.sleep(1)
        return round(time.monotonic() - begin, 1)

    def memory(self) -> dict[str, str]:
        """Return the used memory of each container."""
        names = self.containers()
        printed = output(["docker", "stats", "--no-stream", "--format", "{{.Name}}|{{.MemUsage}}", *names])
        rows = (line.split("|") for line in printed.splitlines())
        return {name.removeprefix(f"{PROJECT}-"): used.split(" /")[0] for name, used in rows}

    def containers(self, service: str = "") -> list[str]:
        """Return the names of the running containers, of one service or all."""
        argv = [
            "docker",
            "ps",
            "--format",
            "{{.Names}}",
            "--filter",
            f"label=com.docker.compose.project={PROJECT}",
        ]
        if service:
            argv += ["--filter", f"label=com.docker.compose.service={service}"]
        return sorted(output(argv).split())

    def privileged(self) -> list[str]:
        """Return the privileged containers, of which there must be none."""
        printed = output(
            ["docker", "inspect", "--format", "{{.Name}} {{.HostConfig.Privileged}}", *self.containers()]
        )
        return [line.split()[0] for line in printed.splitlines() if line.endswith("true")]

    @property
    def api(self) -> AirflowApi:
        """Client of Airflow's API on the published port; the password changes with the settings."""
        match = re.search(r"^WEB_PASSWORDS='(.*)'$", self.env_file.read_text(), re.MULTILINE)
        if not match:
            raise VerifyError(f"{self.env_file} has no WEB_PASSWORDS")
        return AirflowApi(
            f"http://127.0.0.1:{self.ports['WEB_PORT']}", "admin", json.loads(match[1])["admin"]
        )

    def versions(self) -> dict[str, str]:
        """Return the versions of the containers' programs."""
        airflow = self.inside(
            "api-server", "python", "-c", "import importlib.metadata as m; print(m.version('apache-airflow'))"
        )
        return {
            "airflow": airflow.strip(),
            "slurm": self.inside("ctl", "slurmctld", "-V").strip(),
            "postgresql": self.inside("database", "psql", "--version").strip(),
            "debian": self.inside("ctl", "cat", "/etc/debian_version").strip(),
        }

    def inside(self, service: str, *argv: str) -> str:
        """Run a command in the first container of a service and return its output."""
        return output([*self.called(["demo", "celery"]), "exec", "-T", service, *argv])

    def called(self, profiles: list[str]) -> list[str]:
        """Return the command line of Compose for this session."""
        files = [part for file in self.files for part in ("-f", str(file))]
        return [*self.compose, *files, *(part for profile in profiles for part in ("--profile", profile))]
