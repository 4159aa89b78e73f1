"""What a job's processes are doing right now, asked on its nodes: for somebody who wonders why it is silent."""

from __future__ import annotations

import asyncio

from llm_bridge.config.load import include_dir, load_cluster
from llm_bridge.slurm.client import SlurmClient, SlurmUnreachable
from llm_bridge.transport import LoginNodeUnreachable, connect

# srun that gets no step (a node that does not answer) gives up; the program itself takes less.
SRUN_SECONDS = 40
# Calls of the site's ration to leave to others; as the watcher's.
RESERVE = 5
# Over all nodes, and of each at least.
MOST_LINES = 120
FEWEST_LINES = 4


async def stacks_of(cluster_name: str | None, job_id: str | None) -> list[str]:
    """Lines of ``include/jobs/stacks.py``, run beside the job on each of its nodes (``srun --overlap``).

    Takes at most a minute and never raises: what stands in the way is the answer then.
    """
    if not (cluster_name and job_id):
        return []
    cluster = await asyncio.to_thread(load_cluster, cluster_name)
    program = await asyncio.to_thread((include_dir() / "jobs" / "stacks.py").read_text, encoding="utf-8")
    # --overlap: the step shares the job's CPUs, memory and GPUs instead of waiting for them (srun(1), 20.11 and later).
    step = ["srun", "--quiet", "--overlap", f"--jobid={job_id}", "--ntasks-per-node=1", "--chdir=/"]
    argv = ["timeout", "--kill-after=5", str(SRUN_SECONDS), *step, cluster.login_python, "-"]
    try:
        async with connect(cluster) as transport:
            done = await SlurmClient(cluster, transport).slurm(argv, stdin=program, reserve=RESERVE)
    except (LoginNodeUnreachable, SlurmUnreachable) as error:
        return [f"its processes could not be looked at: {error}"]
    lines = _of_every_node(done.stdout.splitlines())
    if done.code:
        why = done.stderr.strip()[-300:] or f"srun ended with exit code {done.code}"
        lines.append(f"its processes could not be looked at, or not on all nodes: {why}")
    return lines


def _of_every_node(lines: list[str]) -> list[str]:
    """The first lines of each node, whose name they begin with."""
    nodes: dict[str, list[str]] = {}
    for line in lines:
        nodes.setdefault(line.partition(":")[0], []).append(line)
    each = max(FEWEST_LINES, MOST_LINES // max(1, len(nodes)))
    return [line for node in sorted(nodes) for line in nodes[node][:each]]
