"""A real Airflow on this machine: API server, scheduler, DAG processor and triggerer, with LocalExecutor.

    airflow = LocalAirflow(Path("build/airflow"), dags=Path("dags"), plugins=Path("plugins"), env={...})
    airflow.start()
    airflow.api().trigger("post_training", {}, "run-1")
    airflow.stop()

The four components are started one by one, not by `airflow standalone`: that needs a fifth process of 150 MB, and
leaves the others behind when it is ended.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo import processes
from demo.airflow_api import AirflowApi

LOOPBACK = "127.0.0.1"
# Every process of an Airflow has this variable, with its home: that is how they are found.
MARK = "LLM_BRIDGE_AIRFLOW"
USER = "admin"
# Airflow's processes get these of ours and no others: a stray AIRFLOW__* or HF_TOKEN of the user's shell would
# otherwise change what runs.
INHERITED = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "LLM_BRIDGE_HOME"),
)
HEALTHY = {"metadatabase", "scheduler", "triggerer", "dag_processor"}


class AirflowError(RuntimeError):
    """Airflow did not start or end; the text says which part, and where its log is."""


class LocalAirflow:
    """One Airflow; the object holds settings only, so any number of programs may refer to the same one.

    Args:
        home: AIRFLOW_HOME; made when missing. Database, logs and secrets (0600) go there.
        dags: DAGs folder.
        plugins: plugins folder; also on PYTHONPATH.
        env: more variables for Airflow's processes: AIRFLOW_CONN_*, AIRFLOW__SECTION__KEY, ...
        port: of UI and API, on 127.0.0.1; another one is chosen when it is taken.
        database_url: SQLAlchemy URL; None means SQLite in `home`.
        parallelism: how many tasks may run at once; each is an idle process of 9 MB.
        python: a Python that has Airflow.
    """

    def __init__(
        self,
        home: Path,
        dags: Path,
        plugins: Path,
        env: Mapping[str, str] | None = None,
        port: int = 8080,
        *,
        database_url: str | None = None,
        parallelism: int = 4,
        python: str | Path = sys.executable,
    ) -> None:
        self.home = home.resolve()
        self.dags = dags.resolve()
        self.plugins = plugins.resolve()
        self.env = dict(env or {})
        self.database_url = database_url or f"sqlite:///{self.home}/airflow.db"
        self.parallelism = parallelism
        self.python = str(python)
        self.port: int = self._note().get("port") or port
        self._children: list[subprocess.Popen[bytes]] = []

    # ---- what a user needs

    @property
    def url(self) -> str:
        """Address of UI and API."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def password_file(self) -> Path:
        """JSON file, 0600: user name -> password. `admin` may do everything."""
        return self.home / "passwords.json"

    @property
    def password(self) -> str:
        """The password of user `admin`."""
        return str(json.loads(self.password_file.read_text())[USER])

    @property
    def log_dir(self) -> Path:
        """What the components print: `scheduler.log`, `triggerer.log`, ..."""
        return self.home / "components"

    def api(self) -> AirflowApi:
        """A client of the REST API, logged in as `admin`."""
        return AirflowApi(self.url, USER, self.password)

    def task_logs(self, dag_id: str, run_id: str, task_id: str) -> list[Path]:
        """Log files of a task, in the order of writing: one an attempt, and one that its trigger writes beside it."""
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        return sorted(folder.glob("attempt=*.log*"), key=lambda file: file.stat().st_mtime)

    # ---- start and stop

    def start(self, timeout: float = 180) -> bool:
        """Start all components and wait until they say that they are healthy.

        One that is up and healthy is left alone, unless its settings or the code in plugins/ have changed since:
        scheduler and triggerer would go on with what they have imported.

        Returns:
            True when it was started, False when it was up already.

        Raises:
            AirflowError: a component ended, or is not healthy after `timeout` seconds. Nothing is left running.
        """
        fingerprint = self._fingerprint()
        if self._note().get("fingerprint") == fingerprint and self.is_up():
            return False
        self.stop()
        try:
            self._prepare()
            self.port = free_port(self.port)
            self._migrate()
            for name, arguments in self._components().items():
                self._children.append(self._spawn(name, arguments))
            note = {"port": self.port, "fingerprint": fingerprint, "pids": [p.pid for p in self._children]}
            self._write_private(self._note_file, note)
            self._wait_until_healthy(timeout)
        except BaseException:
            self.stop()
            raise
        return True

    def stop(self, patience: float = 15) -> None:
        """End all processes, running tasks included, and see that they are gone. Fine if there are none.

        Args:
            patience: seconds to end in order, then they are killed.

        Raises:
            AirflowError: some are still there.
        """
        try:
            processes.end(self.processes, patience)
        except RuntimeError as error:
            raise AirflowError(f"Airflow in {self.home}: {error}") from error
        for child in self._children:
            child.wait(timeout=10)  # ended above; this lets the kernel forget it
        self._children.clear()
        self._note_file.unlink(missing_ok=True)

    def processes(self) -> list[int]:
        """Pids of everything that belongs to this Airflow, tasks included."""
        return processes.with_variable(MARK, str(self.home))

    def health(self) -> dict[str, str]:
        """Component -> `healthy` or anything else; empty when it is not up."""
        return AirflowApi(self.url, USER, "").health() if self.processes() else {}

    def is_up(self) -> bool:
        """Whether all components run and are healthy, and the server on the port is this one."""
        # What died within the last 30 s still counts as healthy with Airflow.
        if not set(self._note().get("pids", [0])) <= set(self.processes()):
            return False
        health = self.health()
        return all(health.get(name) == "healthy" for name in HEALTHY) and self.api().knows_us()

    # ---- inner parts

    def environment(self) -> dict[str, str]:
        """The whole environment of Airflow's processes; for `airflow` commands by hand, too."""
        keys = self._secrets()
        return {
            **{name: os.environ[name] for name in INHERITED if name in os.environ},
            **{
                name: value
                for name, value in os.environ.items()
                if name.lower() in ("http_proxy", "https_proxy")
            },
            "NO_PROXY": f"{LOOPBACK},localhost",
            "AIRFLOW_HOME": str(self.home),
            "PYTHONPATH": str(self.plugins),
            "PYTHONUNBUFFERED": "1",
            # setproctitle would write over the environment as ps and we see it.
            "SPT_NOENV": "1",
            MARK: str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(self.plugins),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(self.parallelism),
            "AIRFLOW__CORE__FERNET_KEY": keys["fernet"],
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.password_file),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.database_url,
            "AIRFLOW__API__HOST": LOOPBACK,
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__SECRET_KEY": keys["session"],
            "AIRFLOW__API_AUTH__JWT_SECRET": keys["jwt"],
            **self.env,
        }

    @staticmethod
    def _components() -> dict[str, list[str]]:
        # --skip-serve-logs: those servers listen on all addresses, and the log files lie right here.
        return {
            "api-server": ["api-server"],
            "scheduler": ["scheduler", "--skip-serve-logs"],
            "dag-processor": ["dag-processor"],
            "triggerer": ["triggerer", "--skip-serve-logs"],
        }

    def _spawn(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        with (self.log_dir / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [self.python, "-m", "airflow", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                cwd=self.home,
                start_new_session=True,  # Ctrl-C in our terminal is not meant for them
            )

    def _prepare(self) -> None:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        # Also connections and, in the database, what tasks exchange: nobody else's business.
        self.home.chmod(0o700)
        if not self.password_file.exists():
            self._write_private(self.password_file, {USER: secrets.token_urlsafe(12)})

    def _secrets(self) -> dict[str, str]:
        path = self.home / "secrets.json"
        if not path.exists():
            values = {
                "fernet": base64.urlsafe_b64encode(os.urandom(32)).decode(),
                "session": secrets.token_hex(32),
                "jwt": secrets.token_urlsafe(64),  # HS512 wants 64 bytes; this is 86 characters
            }
            self._write_private(path, values)
        return dict(json.loads(path.read_text()))

    def _migrate(self) -> None:
        """Make the tables; skipped when this database has them (7 s)."""
        done = self.home / "migrated"
        wanted = hashlib.sha256(f"{self.python} {self.database_url}".encode()).hexdigest()
        lost = self.database_url.startswith("sqlite:") and not Path(self.database_url[10:]).exists()
        if done.exists() and done.read_text() == wanted and not lost:
            return
        process = self._spawn("migrate", ["db", "migrate"])
        if process.wait():
            raise self._failed("migrate", "`airflow db migrate` failed")
        done.write_text(wanted)

    def _wait_until_healthy(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self.is_up():
            for name, child in zip(self._components(), self._children, strict=True):
                if child.poll() is not None:
                    raise self._failed(name, f"it ended with exit code {child.returncode}")
            if time.monotonic() > deadline:
                sick = {name: self.health().get(name) for name in HEALTHY}
                late = ", ".join(f"{name} {state}" for name, state in sick.items() if state != "healthy")
                raise AirflowError(
                    f"Airflow at {self.url} is not healthy after {timeout:.0f} s ({late}): see {self.log_dir}"
                )
            time.sleep(0.5)

    def _failed(self, name: str, what: str) -> AirflowError:
        log = self.log_dir / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines()[-12:]
        return AirflowError(f"Airflow's {name}: {what}. The last lines of {log}:\n  " + "\n  ".join(lines))

    def _fingerprint(self) -> str:
        settings = {**self.env, "python": self.python, "dags": str(self.dags), "db": self.database_url}
        digest = hashlib.sha256(json.dumps([settings, self.parallelism], sort_keys=True).encode())
        for file in sorted(self.plugins.rglob("*.py")):
            digest.update(str(file).encode() + file.read_bytes())
        return digest.hexdigest()

    @property
    def _note_file(self) -> Path:
        return self.home / "running.json"

    def _note(self) -> dict[str, Any]:
        """What the last start wrote down: port, fingerprint, and the components' pids."""
        try:
            return dict(json.loads(self._note_file.read_text()))
        except (OSError, ValueError):
            return {}

    @staticmethod
    def _write_private(path: Path, values: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(values, file)


def free_port(wanted: int) -> int:
    """`wanted`, or some other port of 127.0.0.1 where that is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            # Without it a port that was used a minute ago would count as taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise AirflowError(f"no port of {LOOPBACK} is free")
