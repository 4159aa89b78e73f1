"""The login shell of the user that runs Airflow, where Airflow itself runs on the login node."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

# As sshd's default; the shell's start files replace it.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Shells of accounts that nobody logs in to, such as a service's.
NO_LOGIN = ("nologin", "false", "true", "sync")


def arguments(command: str) -> tuple[list[str], dict[str, Any]]:
    """Return arguments and options of a process that runs a command as a login over SSH would.

    The command gets the environment of the user's login shell, and nothing of Airflow's: neither its virtual
    environment (PATH, VIRTUAL_ENV, PYTHONPATH), nor its secrets, nor its current directory. sbatch would pass them on
    to each job. Only Slurm's variables are kept, of which ``templates/login_command.sh`` leaves those that lead to the
    controller.

    Args:
        command: A command line for any shell.

    Returns:
        The program's argv, and options of ``asyncio.create_subprocess_exec``.
    """
    try:
        user = pwd.getpwuid(os.getuid())
        name, home, shell = user.pw_name, user.pw_dir, user.pw_shell
    except KeyError:  # in a container with any uid
        name, home, shell = str(os.getuid()), os.environ.get("HOME", "/"), ""
    if Path(shell).name in NO_LOGIN or not (os.path.isabs(shell) and os.access(shell, os.X_OK)):
        shell = "/bin/sh"
    environment = {name: value for name, value in os.environ.items() if name.startswith("SLURM_")}
    environment |= {"HOME": home, "USER": name, "LOGNAME": name, "SHELL": shell, "PATH": PATH}
    # "-" before its name makes any shell a login shell (tcsh takes no -l beside -c).
    argv = [f"-{Path(shell).name}", "-c", f"exec {command}"]
    directory = home if os.access(home, os.X_OK) else "/"
    return argv, {"executable": shell, "env": environment, "cwd": directory}
