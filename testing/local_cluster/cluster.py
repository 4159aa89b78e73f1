"""Real Slurm cluster of several hosts on this machine, in Linux namespaces."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from testing.local_cluster import host as hosts
from testing.local_cluster import inspection, lifecycle, ports, services
from testing.local_cluster.checks import preflight
from testing.local_cluster.command import run_group
from testing.local_cluster.errors import LocalClusterError
from testing.local_cluster.namespaces import NETWORK, Namespaces
from testing.local_cluster.render import render_cluster
from testing.local_cluster.settings import CONTROLLER, LOGIN, Settings, load_settings, state_root
from testing.local_cluster.status import ClusterStatus

HOME_OF_DAEMON = {"slurmctld": CONTROLLER, "slurmdbd": CONTROLLER, "mariadbd": CONTROLLER, "sshd": LOGIN}


class LocalCluster:
    """One named cluster: hosts `ctl`, `login`, `n1`..., each in its own namespaces.

    The object holds settings only; the state is read from the kernel each time, so that several objects and programs
    may use the same cluster.

    Args:
        name: Name of the cluster; clusters with different names and ports can be up at the same time.
        ssh_port: Port on 127.0.0.1 of the login host's sshd.
        nodes: Number of compute nodes (n1, n2, ...).
        gpus_per_node: Simulated GPUs per node.
        accounting: Run slurmdbd on MariaDB, so that sacct works.
        min_job_age: Seconds that slurmctld keeps a finished job.
        names: Names of the first nodes, in place of n1, n2, ...

    Raises:
        LocalClusterError: A value is out of its range.
    """

    def __init__(
        self,
        name: str = "local",
        ssh_port: int = 22022,
        nodes: int = 4,
        gpus_per_node: int = 8,
        accounting: bool = True,
        min_job_age: int = 300,
        names: Sequence[str] = (),
    ) -> None:
        self.settings = Settings(
            name, ssh_port, nodes, gpus_per_node, accounting, min_job_age, names=tuple(names)
        )
        self._spaces = Namespaces(name)

    @classmethod
    def load(cls, name: str = "local") -> LocalCluster:
        """Return the cluster with the settings of its last start.

        Raises:
            LocalClusterError: It was never started, or has been wiped.
        """
        saved = load_settings(name)
        if saved is None:
            raise LocalClusterError(
                f"there is no cluster {name!r} in {state_root()}; start it:"
                f" python3 -m testing.local_cluster up --name {name}"
            )
        cluster = cls(name)
        cluster.settings = saved
        return cluster

    # ---- for clients

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

        A healthy cluster stays unchanged. An unhealthy one (a crash, an injected fault) is stopped and started
        again; queue, accounting, keys and the shared file system are kept.

        Returns:
            True if it was started, False if it was already up.

        Raises:
            LocalClusterError: The machine lacks a requirement, the cluster is up with other settings, or a host did not
                start.
        """
        with self._lock():
            saved = load_settings(self.settings.name)
            if self._spaces.present() and saved and not self.status().problems():
                if saved != self.settings:
                    raise LocalClusterError(
                        f"cluster {saved.name} is up with other settings ({saved}); first:"
                        f" python3 -m testing.local_cluster down --name {saved.name}"
                    )
                return False
            preflight(self.settings)
            lifecycle.tear_down(self._spaces)
            ports.check_free(
                self.ssh_port, "stop the program that uses it, or choose another port with --ssh-port"
            )
            render_cluster(self.settings)
            self.settings.save()
            try:
                lifecycle.start(self.settings, self._spaces)
            except BaseException:
                lifecycle.tear_down(self._spaces, patience=0)
                raise
            return True

    def down(self, wipe: bool = False) -> None:
        """Stop the cluster, and remove its processes, network namespaces and mounts. No-op if it is down.

        Args:
            wipe: Also delete its state directory, with the shared file system in it.

        Raises:
            LocalClusterError: A process or namespace could not be removed.
        """
        with self._lock():
            lifecycle.tear_down(self._spaces)
            if wipe and self.settings.state_dir.exists():
                shutil.rmtree(self.settings.state_dir)

    def status(self) -> ClusterStatus:
        """Return the state of every host, daemon and node (about 0.3 s), without raising for a broken cluster."""
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
            argv: Program and arguments, without a shell.
            user: svc, other, or None for root. The program starts in the user's home with a clean environment.
            input: Text for its standard input.
            timeout: In seconds; None waits forever.

        Returns:
            Exit code and output; the exit code is not checked.

        Raises:
            LocalClusterError: The host is off.
            subprocess.TimeoutExpired: The program exceeded the timeout, and was killed.
        """
        return run_group(self.exec_argv(host, argv, user), input, timeout)

    def exec_argv(self, host: str, argv: list[str], user: str | None = None) -> list[str]:
        """Return the command line with which root of this machine runs `argv` inside a host."""
        return hosts.enter_argv(self.settings, self._spaces.init_pid(host), argv, user)

    def wait_for_nodes(self, nodes: list[str] | None = None, timeout: float = 30.0) -> None:
        """Wait until nodes can take jobs (idle, mixed or allocated, and answering).

        Args:
            nodes: Names of the nodes; None means all.
            timeout: In seconds.

        Raises:
            LocalClusterError: They cannot in time; the message has each node's state.
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
        """Boot another host that runs a command as root, reachable as NAME:port from every host.

        The command has this machine's files, /tmp included, and starts in the current directory. It ends with `down`.

        Args:
            name: Host name, such as `hub` (10.77.0.4).
            listen_port: Port on this machine's 127.0.0.1 that is forwarded to the command.
            port: Port on which the command listens, on 0.0.0.0.
            argv: The command.
            env: Its whole environment; None means this process'.
            timeout: Seconds until the command must listen.

        Raises:
            LocalClusterError: Invalid name, port taken, cluster down, or the command ended or does not listen.
        """
        with self._lock():
            if NETWORK not in self._spaces.present():
                raise LocalClusterError(
                    f"cluster {self.settings.name} is down; start it: python3 -m testing.local_cluster up"
                    f" --name {self.settings.name}"
                )
            services.start(self.settings, self._spaces, name, listen_port, port, argv, env, timeout)

    def stop_service(self, name: str) -> None:
        """Stop a service and its host. No-op if there is none."""
        with self._lock():
            services.stop(self.settings, self._spaces, name)

    # ---- faults

    def power_off(self, host: str) -> None:
        """Power off a host without shutdown: its processes are killed, its disk is kept."""
        self._known(host)
        self._spaces.kill([host])

    def power_on(self, host: str, timeout: float = 30.0) -> None:
        """Boot a host and wait until its daemons answer. No-op if it is on.

        Slurm uses the node again somewhat later: see `wait_for_nodes`.

        Raises:
            LocalClusterError: Unknown host, cluster down, or the host did not start in `timeout` seconds.
        """
        self._known(host)
        if host not in self._spaces.init_pids([host]):
            hosts.boot_role(self.settings, self._spaces, host)
            lifecycle.wait_ready(self.settings, self._spaces, [host], timeout)

    def cut(self, host: str) -> None:
        """Disconnect a host from the network; its processes continue."""
        self._known(host)
        self._spaces.plug(host, connected=False)

    def join(self, host: str) -> None:
        """Connect a host to the network again."""
        self._known(host)
        self._spaces.plug(host, connected=True)

    def kill(self, daemon: str, host: str | None = None) -> None:
        """Send SIGKILL to a daemon and wait until it has ended. No-op if it is down.

        Args:
            daemon: slurmctld, slurmdbd, mariadbd, sshd, or with `host`: slurmd, munged.
            host: The daemon's host; optional for daemons that run on one host only.
        """
        self._control("kill", daemon, host)

    def stop(self, daemon: str, host: str | None = None) -> None:
        """Stop a daemon with SIGTERM; it stays down until `start`. Arguments as for `kill`."""
        self._control("stop", daemon, host)

    def start(self, daemon: str, host: str | None = None) -> None:
        """Start a daemon and wait until it answers. No-op if it runs. Arguments as for `kill`."""
        self._control("start", daemon, host)

    def restart(self, daemon: str, host: str | None = None) -> None:
        """Stop a daemon with SIGTERM and start it again. Arguments as for `kill`."""
        self._control("restart", daemon, host)

    # ---- internals

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
                f"cluster {self.settings.name} is down; start it: python3 -m testing.local_cluster up"
                f" --name {self.settings.name}"
            )

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Serialize changes of the cluster across programs."""
        root = state_root()
        try:
            root.mkdir(parents=True, exist_ok=True)
            with (root / f"{self.settings.name}.lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except PermissionError as error:
            raise LocalClusterError(f"{error}; the local cluster needs root: run it with sudo") from error
