"""Stack dump of the processes of this Slurm job on this node, as lines of text.

The stacks come from py-spy if it is installed (ray[default] installs it), else only the kernel's process state is
printed. Runs as a step of the job (plugins/llm_bridge/monitoring/stack_dump.py) and changes nothing. Syntax of Python
3.6.

By hand:  srun --overlap --jobid=JOB --ntasks-per-node=1 python3 - < stack_dump.py
"""

import os
import shutil
import socket
import subprocess
from typing import Dict, List, Optional, Tuple

# Limit of the processes of a node, and of the lines for each.
MAX_PROCESSES = 4
MAX_LINES = 25
# py-spy needs one or two seconds for a process; for a process in uninterruptible sleep it may never return.
PY_SPY_TIMEOUT_SECONDS = 6
# Names of the processes that every Slurm job has; they are not printed.
SLURM_PROCESSES = ("slurmstepd", "srun", "tee")
# Parts of the command lines of Ray's daemons and of the programs that run a Ray cluster; they are printed last.
RAY_DAEMONS = (
    *("/ray/_private/", "/ray/dashboard/", "/ray/core/src/", "/ray/autoscaler/", "/bin/ray "),
    *("ray.scripts.scripts", "ray.util.client", "ray::IDLE", "ray::_ray_internal", "ray::JobSupervisor"),
    *("ray_cluster", "ray-node-agent", "ray-head-guard", "ray_job.sh"),
)


def read(pid: str, name: str) -> bytes:
    """Return the content of ``/proc/PID/NAME``; empty once the process has ended."""
    try:
        with open("/proc/%s/%s" % (pid, name), "rb") as stream:
            return stream.read()
    except OSError:
        return b""


def environment(pid: str) -> Dict[str, str]:
    """Return the environment variables with which a process was started."""
    pairs = (entry.partition(b"=") for entry in read(pid, "environ").split(b"\0"))
    return {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, _, value in pairs}


def status(pid: str) -> Dict[str, str]:
    """Return the fields of ``/proc/PID/status``."""
    lines = read(pid, "status").decode("utf-8", "replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def cpu_ticks(pid: str) -> int:
    """Return the CPU time of a process in clock ticks (proc(5), stat: utime and stime)."""
    fields = read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12]) if len(fields) > 12 else 0


def is_python(pid: str) -> bool:
    """Return True for a Python process; Ray's workers have the name ``ray::TASK``."""
    first = read(pid, "cmdline").split(b"\0")[0].decode("utf-8", "replace")
    return first.startswith("ray::") or "python" in os.path.basename(first.split(" ")[0])


def command_line(pid: str) -> str:
    """Return the command line of a process as one line of text."""
    return " ".join(read(pid, "cmdline").replace(b"\0", b" ").decode("utf-8", "replace").split())


def sort_key(pid: str) -> Tuple[bool, bool, bool, int]:
    """Return a sort key that puts Ray's daemons last.

    Within both groups Python processes come first, then blocked ones (stopped, traced or in uninterruptible sleep),
    then those with the most CPU time.
    """
    daemon = any(part in command_line(pid) for part in RAY_DAEMONS)
    blocked = status(pid).get("State", "")[:1] in ("T", "t", "D")
    return daemon, not is_python(pid), not blocked, -cpu_ticks(pid)


def job_processes(job_id: str, own_step: Optional[str]) -> List[str]:
    """Return the process ids of a job, sorted by :func:`sort_key`.

    Args:
        job_id: Slurm's job id.
        own_step: Slurm's id of this step, whose processes are omitted.
    """
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        variables = environment(pid)
        if variables.get("SLURM_JOB_ID") != job_id or variables.get("SLURM_STEP_ID") == own_step:
            continue
        name = status(pid).get("Name", "")
        if name and name not in SLURM_PROCESSES:
            found.append((sort_key(pid), pid))
    return [pid for _, pid in sorted(found)]


def py_spy(pid: str) -> Optional[str]:
    """Return the path of py-spy in the environment of a process or of this node; None if it is not installed."""
    variables = environment(pid)
    folders = [
        os.path.join(variables[name], "bin") for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if name in variables
    ]
    first = read(pid, "cmdline").split(b"\0")[0].decode("utf-8", "replace")
    folders += [os.path.dirname(first)] if first.startswith("/") else []
    folders += [variables.get("PATH", ""), os.environ.get("PATH", "")]
    return shutil.which("py-spy", path=os.pathsep.join(folders))


def stack(pid: str) -> Tuple[List[str], str]:
    """Return the lines of a process's stack, or no lines and the error."""
    program = py_spy(pid)
    if not program:
        return [], "py-spy is not installed in the job's environment"
    # --nonblocking: the process is not paused.
    argv = [program, "dump", "--nonblocking", "--pid", pid]
    try:
        done = subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=PY_SPY_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], "py-spy: %s" % error
    if done.returncode:
        errors = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return [], "py-spy: %s" % (errors[-1] if errors else "exit code %d" % done.returncode)
    lines = [line.rstrip() for line in done.stdout.decode("utf-8", "replace").splitlines()]
    # The output starts with the command line, which may be a whole program; it is skipped.
    threads = [n for n, line in enumerate(lines) if line.startswith("Thread ")]
    return [line for line in lines[threads[0] if threads else 0 :] if line][:MAX_LINES], ""


def main() -> None:
    """Print the state and stack of each process."""
    node = socket.gethostname()
    pids = job_processes(os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_STEP_ID"))
    problems = []  # type: List[str]
    for pid in pids[:MAX_PROCESSES]:
        fields = status(pid)
        command = command_line(pid)[:120]
        function = read(pid, "wchan").decode("ascii", "replace").strip("0\n")
        waiting = ", waits in %s" % function if function else ""
        print("%s: process %s is %s%s: %s" % (node, pid, fields.get("State", "ended"), waiting, command))
        lines, problem = stack(pid) if is_python(pid) else ([], "")
        for line in lines:
            print("%s:   %s" % (node, line))
        if problem and problem not in problems:
            problems.append(problem)
    if not pids:
        print("%s: the job has no process here" % node)
    for problem in problems:
        print("%s: no stacks: %s" % (node, problem))


main()
