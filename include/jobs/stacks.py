"""What the processes of this Slurm job do on this node, as lines of text.

Stacks by py-spy where it is installed (ray[default] brings it along), else what the kernel says. Runs as a step of the
job, beside it (plugins/llm_bridge/slurm/stacks.py); changes nothing.

By hand:  srun --overlap --jobid=JOB --ntasks-per-node=1 python3 - < stacks.py
"""

import os
import shutil
import socket
import subprocess

# The busiest processes of a node, and lines of each.
MOST_PROCESSES = 4
MOST_LINES = 25
# py-spy needs one or two seconds for a process; one that the kernel does not let go of takes for ever.
SPY_SECONDS = 6
# What every Slurm job has: of no interest.
PLUMBING = ("slurmstepd", "srun", "tee")
# Ray's own daemons, and what keeps a Ray cluster up: looked at last. By a part of their command lines.
DAEMONS = (
    *("/ray/_private/", "/ray/dashboard/", "/ray/core/src/", "/ray/autoscaler/", "/bin/ray "),
    *("ray.scripts.scripts", "ray.util.client", "ray::IDLE", "ray::_ray_internal", "ray::JobSupervisor"),
    *("ray_cluster", "ray_node.py", "ray_supervise.py", "ray_guard.py", "ray_job.sh"),
)


def read(pid, name):
    """A file of /proc as bytes; empty once the process is gone."""
    try:
        with open("/proc/%s/%s" % (pid, name), "rb") as stream:
            return stream.read()
    except OSError:
        return b""


def environment(pid):
    """The variables that a process was started with."""
    pairs = (entry.partition(b"=") for entry in read(pid, "environ").split(b"\0"))
    return {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, _, value in pairs}


def status(pid):
    """Fields of /proc/PID/status."""
    lines = read(pid, "status").decode("utf-8", "replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def cpu_ticks(pid):
    """CPU time that it has used (proc(5), stat: utime and stime)."""
    fields = read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12]) if len(fields) > 12 else 0


def is_python(pid):
    """Whether it is one; Ray's workers call themselves ray::TASK."""
    first = read(pid, "cmdline").split(b"\0")[0].decode("utf-8", "replace")
    return first.startswith("ray::") or "python" in os.path.basename(first.split(" ")[0])


def command_line(pid):
    """As one line."""
    return " ".join(read(pid, "cmdline").replace(b"\0", b" ").decode("utf-8", "replace").split())


def interest(pid):
    """What is looked at first sorts lowest: programs, Python's before others, that stand still, that worked most."""
    daemon = any(part in command_line(pid) for part in DAEMONS)
    stands_still = status(pid).get("State", "")[:1] in ("T", "t", "D")
    return daemon, not is_python(pid), not stands_still, -cpu_ticks(pid)


def of_job(job_id, own_step):
    """Processes of the job, the most interesting ones first; without this step's."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        variables = environment(pid)
        if variables.get("SLURM_JOB_ID") != job_id or variables.get("SLURM_STEP_ID") == own_step:
            continue
        name = status(pid).get("Name", "")
        if name and name not in PLUMBING:
            found.append((interest(pid), pid))
    return [pid for _, pid in sorted(found)]


def py_spy(pid):
    """The program, from where the process would find it: its environment, this node."""
    variables = environment(pid)
    folders = [
        os.path.join(variables[name], "bin") for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if name in variables
    ]
    first = read(pid, "cmdline").split(b"\0")[0].decode("utf-8", "replace")
    folders += [os.path.dirname(first)] if first.startswith("/") else []
    folders += [variables.get("PATH", ""), os.environ.get("PATH", "")]
    return shutil.which("py-spy", path=os.pathsep.join(folders))


def stack(pid):
    """(lines of its stack, what stood in the way)."""
    program = py_spy(pid)
    if not program:
        return [], "py-spy is not installed in the job's environment"
    # --nonblocking: the process is not even paused.
    argv = [program, "dump", "--nonblocking", "--pid", pid]
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=SPY_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], "py-spy: %s" % error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return [], "py-spy: %s" % (said[-1] if said else "exit code %d" % done.returncode)
    lines = [line.rstrip() for line in done.stdout.decode("utf-8", "replace").splitlines()]
    # Before the first thread stands the command line, which may be a whole program.
    threads = [n for n, line in enumerate(lines) if line.startswith("Thread ")]
    return [line for line in lines[threads[0] if threads else 0 :] if line][:MOST_LINES], ""


def main():
    """Print what there is to see."""
    node = socket.gethostname()
    pids = of_job(os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_STEP_ID"))
    problems = []
    for pid in pids[:MOST_PROCESSES]:
        facts = status(pid)
        command = command_line(pid)[:120]
        waits = read(pid, "wchan").decode("ascii", "replace").strip("0\n")
        where = ", waits in %s" % waits if waits else ""
        print("%s: process %s is %s%s: %s" % (node, pid, facts.get("State", "gone"), where, command))
        lines, problem = stack(pid) if is_python(pid) else ([], "")
        for line in lines:
            print("%s:   %s" % (node, line))
        if problem and problem not in problems:
            problems.append(problem)
    if not pids:
        print("%s: no process of the job is left" % node)
    for problem in problems:
        print("%s: no stacks: %s" % (node, problem))


main()
