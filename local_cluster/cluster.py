"""A real Slurm cluster of several hosts on this machine, in Linux namespaces."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from local_cluster import host as hosts
from local_cluster import inspection, lifecycle, ports, services
from local_cluster.checks import preflight
from local_cluster.command import run_group
from local_cluster.errors import LocalClusterError
from local_cluster.namespaces import NETWORK, Namespaces
from local_cluster.render import render_cluster
from local_cluster.settings import CONTROLLER, LOGIN, Settings, load_settings, state_root
from local_cluster.status import ClusterStatus

HOME_OF_DAEMON = {"slurmctld": CONTROLLER, "slurmdbd": CONTROLLER, "mariadbd": CONTROLLER, "sshd": LOGIN}


class LocalCluster:
    """One named cluster: hosts `ctl`, `login`, `n1`..., each in namespaces of its own.

    The object holds settings only; what runs is read from the kernel each time. So any number of objects and
    programs may refer to the same cluster.

    Args:
        name: several clusters with different names and ports may be up at once.
        ssh_port: port on 127.0.0.1 that leads to the login host's sshd.
        nodes: number of compute nodes (n1, n2, ...).
        gpus_per_node: pretend GPUs a node.
        accounting: run slurmdbd on MariaDB, so that sacct works.
        min_job_age: seconds a finished job stays known to slurmctld.

    Raises:
        LocalClusterError: a value is out of its range.
    """

    def __init__(
        self,
        name: str = "local",
        ssh_port: int = 22022,
        nodes: int = 4,
        gpus_per_node: int = 8,
        accounting: bool = True,
        min_job_age: int = 300,
    ) -> None:
        self.settings = Settings(name, ssh_port, nodes, gpus_per_node, accounting, min_job_age)
        self._spaces = Namespaces(name)

    @classmethod
    def load(cls, name: str = "local") -> LocalCluster:
        """The cluster as it was last started.

        Raises:
            LocalClusterError: it was never started, or has been wiped.
        """
        saved = load_settings(name)
        if saved is None:
            raise LocalClusterError(
                f"there is no cluster {name!r} in {state_root()}; start it:"
                f" python3 -m local_cluster up --name {name}"
            )
        cluster = cls(name)
        cluster.settings = saved
        return cluster

    # ---- what a client needs

    @property
    def ssh_port(self) -> int:
        """Port on 127.0.0.1 of the login host's sshd; the user is svc."""
        return self.settings.ssh_port

    @property
    def ssh_key(self) -> Path:
        """Private key of user svc."""
        return self.settings.ssh_dir / "id_svc"

    @property
    def known_hosts(self) -> Path:
        """Known-hosts file with the login host's key."""
        return self.settings.ssh_dir / "known_hosts"

    @property
    def workspace(self) -> Path:
        """Folder of svc on the shared file system: the same path on every host and on this machine."""
        return self.settings.workspace

    # ---- up and down

    def up(self) -> bool:
        """Start the cluster and wait until every node can take jobs and ssh answers.

        A healthy cluster is left alone. One that is not (a crash, a fault injected and not undone) is brought
        down and started anew; queue, accounting, keys and the shared file system are kept.

        Returns:
            True when it was started, False when it was up already.

        Raises:
            LocalClusterError: the machine lacks something, it is up with other settings, or a host did not
                start.
        """
        with self._lock():
            saved = load_settings(self.settings.name)
            if self._spaces.present() and saved and not self.status().problems():
                if saved != self.settings:
                    raise LocalClusterError(
                        f"cluster {saved.name} is up with other settings ({saved}); first:"
                        f" python3 -m local_cluster down --name {saved.name}"
                    )
                return False
            preflight(self.settings)
            lifecycle.tear_down(self._spaces)
            ports.check_free(self.ssh_port, "stop what uses it or choose another with --ssh-port")
            render_cluster(self.settings)
            self.settings.save()
            try:
                lifecycle.start(self.settings, self._spaces)
            except BaseException:
                lifecycle.tear_down(self._spaces, patience=0)
                raise
            return True

    def down(self, wipe: bool = False) -> None:
        """Stop the cluster: no process, network namespace or mount of it is left. Fine if it is down already.

        Args:
            wipe: also delete its state directory, with the shared file system in it.

        Raises:
            LocalClusterError: something could not be removed.
        """
        with self._lock():
            lifecycle.tear_down(self._spaces)
            if wipe and self.settings.state_dir.exists():
                shutil.rmtree(self.settings.state_dir)

    def status(self) -> ClusterStatus:
        """Look at every host, daemon and node (about 0.3 s). Raises nothing for a cluster that is broken."""
        return inspection.look(self.settings, self._spaces)

    # ---- programs in a host

    def run(
        self,
        host: str,
        argv: list[str],
        user: str | None = None,
        input: str | None = None,
        timeout: float | None = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside a host and wait for it.

        Args:
            host: ctl, login, n1..., or a service's host.
            argv: program and arguments; no shell in between.
            user: svc, other, or None for root. It starts in the user's home with a clean environment.
            input: text for its standard input.
            timeout: seconds; None waits for ever.

        Returns:
            Exit code and output; the exit code is not checked.

        Raises:
            LocalClusterError: the host is off.
            subprocess.TimeoutExpired: it took too long, and has been killed.
        """
        return run_group(self.exec_argv(host, argv, user), input, timeout)

    def exec_argv(self, host: str, argv: list[str], user: str | None = None) -> list[str]:
        """Command line by which this machine's root runs `argv` inside a host, e.g. an interactive shell."""
        return hosts.enter_argv(self.settings, self._spaces.init_pid(host), argv, user)

    def wait_for_nodes(self, nodes: list[str] | None = None, timeout: float = 30.0) -> None:
        """Wait until nodes can take jobs (idle, mixed or allocated, and answering).

        Args:
            nodes: which; None means all.
            timeout: seconds.

        Raises:
            LocalClusterError: they cannot in time; the text holds each one's state.
        """
        lifecycle.wait_for_nodes(self.settings, self._spaces, nodes or self.settings.node_names, timeout)

    # ---- services

    def start_service(
        self,
        name: str,
        listen_port: int,
        port: int,
        argv: list[str],
        env: dict[str, str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        """Boot one more host that runs a command as root, reachable as NAME:port from every host.

        It sees this machine's files, /tmp included, and starts in the current directory. It ends with `down`.

        Args:
            name: host name; `hub` is the usual one (10.77.0.4).
            listen_port: port on this machine's 127.0.0.1 that leads to it.
            port: port the command listens on, on 0.0.0.0.
            argv: the command.
            env: its whole environment; None means this process's.
            timeout: seconds it may take until it listens.

        Raises:
            LocalClusterError: bad name, port taken, cluster down, or the command ended or does not listen.
        """
        with self._lock():
            if NETWORK not in self._spaces.present():
                raise LocalClusterError(
                    f"cluster {self.settings.name} is down; start it: python3 -m local_cluster up"
                    f" --name {self.settings.name}"
                )
            services.start(self.settings, self._spaces, name, listen_port, port, argv, env, timeout)

    def stop_service(self, name: str) -> None:
        """End a service and its host; fine if it is not there."""
        with self._lock():
            services.stop(self.settings, self._spaces, name)

    # ---- faults

    def power_off(self, host: str) -> None:
        """Pull the power cord of a host: everything in it is gone at once, its disk is kept."""
        self._known(host)
        self._spaces.kill([host])

    def power_on(self, host: str, timeout: float = 30.0) -> None:
        """Boot a host that is off and wait until its daemons answer; fine if it is on.

        Slurm takes a moment more to use a node again: see `wait_for_nodes`.

        Raises:
            LocalClusterError: unknown host, cluster down, or the host did not start in `timeout` seconds.
        """
        self._known(host)
        if host not in self._spaces.init_pids([host]):
            hosts.boot_role(self.settings, self._spaces, host)
            lifecycle.wait_ready(self.settings, self._spaces, [host], timeout)

    def cut(self, host: str) -> None:
        """Pull the network cable of a host; what runs in it runs on."""
        self._known(host)
        self._spaces.plug(host, connected=False)

    def join(self, host: str) -> None:
        """Plug the network cable of a host in again."""
        self._known(host)
        self._spaces.plug(host, connected=True)

    def kill(self, daemon: str, host: str | None = None) -> None:
        """SIGKILL a daemon and wait until it is gone; fine if it is down.

        Args:
            daemon: slurmctld, slurmdbd, mariadbd, sshd, or with `host`: slurmd, munged.
            host: where; not needed for those that run on one host only.
        """
        self._control("kill", daemon, host)

    def stop(self, daemon: str, host: str | None = None) -> None:
        """End a daemon in order; it stays down until `start`. Arguments as of `kill`."""
        self._control("stop", daemon, host)

    def start(self, daemon: str, host: str | None = None) -> None:
        """Start a daemon and wait until it answers; fine if it runs. Arguments as of `kill`."""
        self._control("start", daemon, host)

    def restart(self, daemon: str, host: str | None = None) -> None:
        """End a daemon in order and start it again; arguments as of `kill`."""
        self._control("restart", daemon, host)

    # ---- inner parts

    def _control(self, action: str, daemon: str, host: str | None) -> None:
        host = host or HOME_OF_DAEMON.get(daemon)
        if host is None:
            raise LocalClusterError(f"daemon {daemon!r}: name the host too, e.g. {action} slurmd n1")
        self._known(host)
        done = self.run(host, hosts.role_argv(self.settings, host, action, daemon), timeout=60)
        if done.returncode:
            raise LocalClusterError(f"{action} {daemon} on {host} failed: {done.stderr.strip()}")
        if daemon == "sshd" and action in ("start", "restart"):
            lifecycle.wait_for_ssh(self.settings)

    def _known(self, host: str) -> None:
        if host not in self.settings.host_names:
            known = ", ".join(self.settings.host_names)
            raise LocalClusterError(f"no host {host!r}; cluster {self.settings.name} has: {known}")
        if host not in self._spaces.present():
            raise LocalClusterError(
                f"cluster {self.settings.name} is down; start it: python3 -m local_cluster up"
                f" --name {self.settings.name}"
            )

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One change at a time, whichever program makes it."""
        root = state_root()
        try:
            root.mkdir(parents=True, exist_ok=True)
            with (root / f"{self.settings.name}.lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except PermissionError as error:
            raise LocalClusterError(f"{error}; the local cluster needs root: run it with sudo") from error
