"""Real Airflow on this machine: API server, scheduler, DAG processor and triggerer, with LocalExecutor.

    airflow = LocalAirflow(Path("build/airflow"), dags=Path("dags"), plugins=Path("plugins"), env={...})
    airflow.start()
    airflow.api().trigger("post_training", {}, "run-1")
    airflow.stop()

The four components are started one by one, not by `airflow standalone`: that needs a fifth process of 150 MB, and
its children survive it.
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

import httpx

from testing import processes
from testing.airflow_api import AirflowApi

LOOPBACK = "127.0.0.1"
# Every process of an Airflow has this variable, with its home as the value, by which it is found.
MARK = "LLM_BRIDGE_AIRFLOW"
USER = "admin"
# Far above the usual 20: a machine of two cores that runs several clusters needs minutes to import Airflow.
START_TIMEOUT_SECONDS = 600.0
# Airflow's processes inherit only these variables: an AIRFLOW__* or HF_TOKEN of the user's shell would change their
# behaviour.
INHERITED = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "LLM_BRIDGE_HOME"),
)
HEALTHY = {"metadatabase", "scheduler", "triggerer", "dag_processor"}


class AirflowError(RuntimeError):
    """Airflow did not start or end; the message names the component and its log."""


class LocalAirflow:
    """One Airflow; the object holds settings only, so that several programs may use the same Airflow.

    Args:
        home: AIRFLOW_HOME, with database, logs and secrets (0600); created if missing.
        dags: DAGs folder.
        plugins: Plugins folder; also on PYTHONPATH.
        env: Further variables of Airflow's processes: AIRFLOW_CONN_*, AIRFLOW__SECTION__KEY, ...
        port: Port of UI and API on 127.0.0.1; another one is chosen if it is taken.
        database_url: SQLAlchemy URL; None means SQLite in `home`.
        parallelism: Maximum number of running tasks; each is an idle process of 9 MB.
        python: Python with Airflow.
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
        self.sqlite = None if database_url else self.home / "airflow.db"
        # SQLite has one writer at a time. The others wait for 5 s by default, which is short on a busy machine.
        self.database_url = database_url or f"sqlite:///{self.sqlite}?timeout=60"
        self.parallelism = parallelism
        self.python = str(python)
        self.port: int = self._note().get("port") or port
        self._children: list[subprocess.Popen[bytes]] = []

    # ---- for users

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
        """Directory of the components' output: `scheduler.log`, `triggerer.log`, ..."""
        return self.home / "components"

    def api(self) -> AirflowApi:
        """Return a client of the REST API that is logged in as `admin`."""
        return AirflowApi(self.url, USER, self.password)

    def task_logs(self, dag_id: str, run_id: str, task_id: str) -> list[Path]:
        """Return the log files of a task, the oldest first: one per try, and one of its trigger."""
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        return sorted(folder.glob("attempt=*.log*"), key=lambda file: file.stat().st_mtime)

    # ---- start and stop

    def start(self, timeout: float = START_TIMEOUT_SECONDS) -> bool:
        """Start all components and wait until they report that they are healthy.

        An Airflow that is up and healthy keeps running, unless its settings or the code in plugins/ have changed since
        its start: scheduler and triggerer would keep the modules that they have imported.

        Args:
            timeout: Seconds until all components must be healthy.

        Returns:
            True if it was started, False if it was already up.

        Raises:
            AirflowError: A component ended, or is not healthy after `timeout` seconds. Nothing keeps running.
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
        """End all processes, running tasks included, and wait until they have ended. No-op if there are none.

        Args:
            patience: Seconds between SIGTERM and SIGKILL.

        Raises:
            AirflowError: Processes have not ended.
        """
        try:
            processes.end(self.processes, patience)
        except RuntimeError as error:
            raise AirflowError(f"Airflow in {self.home}: {error}") from error
        for child in self._children:
            child.wait(timeout=10)  # ended above; this reaps it
        self._children.clear()
        self._note_file.unlink(missing_ok=True)

    def processes(self) -> list[int]:
        """Return the pids of all processes of this Airflow, tasks included."""
        return processes.with_variable(MARK, str(self.home))

    def health(self) -> dict[str, str]:
        """Return the state of each component, `healthy` or another text; empty if Airflow is down."""
        return AirflowApi(self.url, USER, "").health() if self.processes() else {}

    def is_up(self) -> bool:
        """Return whether all components run and are healthy, and the server on the port is this Airflow."""
        # Airflow reports a component as healthy for 30 s after its end.
        if not set(self._note().get("pids", [0])) <= set(self.processes()):
            return False
        health = self.health()
        return all(health.get(name) == "healthy" for name in HEALTHY) and self.api().accepts_login()

    # ---- internals

    def environment(self) -> dict[str, str]:
        """Return the whole environment of Airflow's processes, also for manual `airflow` commands."""
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
            # Otherwise setproctitle overwrites the environment in /proc, in which MARK is searched.
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
            # The one API server shares the machine with the rest. With the defaults (5 s, five times) a task whose
            # first request is not answered in time fails before its code ran ("state mismatch") and uses up a try.
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
            "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "10",
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
        # --skip-serve-logs: log servers listen on all addresses, and the log files are local.
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
                start_new_session=True,  # Ctrl-C in the terminal must not reach them
            )

    def _prepare(self) -> None:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        # Private, because it also has connections and, in the database, XComs.
        self.home.chmod(0o700)
        if not self.password_file.exists():
            self._write_private(self.password_file, {USER: secrets.token_urlsafe(12)})

    def _secrets(self) -> dict[str, str]:
        path = self.home / "secrets.json"
        if not path.exists():
            values = {
                "fernet": base64.urlsafe_b64encode(os.urandom(32)).decode(),
                "session": secrets.token_hex(32),
                "jwt": secrets.token_urlsafe(64),  # HS512 needs 64 bytes; this is 86 characters
            }
            self._write_private(path, values)
        return dict(json.loads(path.read_text()))

    def _migrate(self) -> None:
        """Create the tables (7 s), unless this database has them."""
        done = self.home / "migrated"
        wanted = hashlib.sha256(f"{self.python} {self.database_url}".encode()).hexdigest()
        lost = self.sqlite is not None and not self.sqlite.exists()
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
        # The server builds its API for tasks at the first request to it, and answers no request meanwhile: on a busy
        # machine for longer than the timeout of the first tasks. Any response is sufficient.
        try:
            httpx.get(f"{self.url}/execution/health", timeout=timeout, trust_env=False)
        except httpx.HTTPError as error:
            raise self._failed("api-server", f"no answer to tasks: {error!r}") from error

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
        """Return the record of the last start: port, fingerprint, and the components' pids."""
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
    """Return `wanted` if that port of 127.0.0.1 is free, or else another free port."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            # Without it a port that was in use a minute ago counts as taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise AirflowError(f"no port of {LOOPBACK} is free")
