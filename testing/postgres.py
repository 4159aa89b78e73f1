"""A PostgreSQL of the tests' own: started, ended and deleted by them, on loopback only."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from pathlib import Path

from testing.airflow import free_port

# Debian's package makes it. The server refuses to run as root.
USER = "postgres"


class Postgres:
    """One server with an empty database ``airflow``.

    :param folder: its data directory; user ``postgres`` must be able to enter the folders above it. Emptied first.
    :param port: its port on 127.0.0.1; another one is chosen if it is taken.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = free_port(port)
        self._password = secrets.token_hex(16)

    @property
    def url(self) -> str:
        """For SQLAlchemy; Airflow itself puts the asynchronous driver in."""
        return f"postgresql+psycopg://{USER}:{self._password}@127.0.0.1:{self.port}/airflow"

    def start(self) -> None:
        """Make the database and wait until it answers."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        shutil.chown(self.folder, USER, USER)
        secret = self.folder.with_suffix(".password")
        secret.write_text(self._password)
        shutil.chown(secret, USER, USER)
        secret.chmod(0o400)
        # Not built to survive a power cut (fsync): it is none of the faults, and two cores have better things to do.
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("initdb", "--no-sync", f"--pwfile={secret}", "--auth=scram-sha-256", "-D", str(self.folder))
        secret.unlink()
        self._run(
            "pg_ctl", "start", "-w", "-D", str(self.folder), "-l", str(self.folder / "log"), "-o", options
        )
        address = ("-h", "127.0.0.1", "-p", str(self.port))
        self._run("createdb", *address, "airflow", PGPASSWORD=self._password)

    def stop(self) -> None:
        """End it and delete its files; fine if it does not run."""
        if (self.folder / "postmaster.pid").exists():
            self._run("pg_ctl", "stop", "-m", "immediate", "-D", str(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _run(program: str, *arguments: str, **environment: str) -> None:
        # Debian keeps them off PATH, one folder a version.
        found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
        if not found:
            raise RuntimeError(f"no PostgreSQL here ({program} is missing): run `make setup`")
        become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--reset-env", "--"]
        variables = ["env", "--chdir=/", "LANG=C.UTF-8", *(f"{k}={v}" for k, v in environment.items())]
        # Not a pipe: the server would inherit it, and we would wait for its end.
        done = subprocess.run(
            [*become, *variables, str(found[-1]), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        if done.returncode:
            raise RuntimeError(f"PostgreSQL's {program} ended with exit code {done.returncode}")
