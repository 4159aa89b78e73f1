"""Stack dump of a running job: what its processes are doing right now, for the diagnosis of a hang."""

from __future__ import annotations

import asyncio
from importlib import resources

from llm_bridge.config.loader import load_cluster
from llm_bridge.exceptions import ClusterUnavailable
from llm_bridge.slurm.client import open_client
from llm_bridge.slurm.status import is_job_id

# Limits an srun that gets no step (a node that does not answer); the program itself takes less.
SRUN_TIMEOUT_SECONDS = 40
# Calls of the site's rate limit (rpc_budget) that are left to submissions and cancels; as the poller's.
RESERVE = 5
# Over all nodes, and at least for each of them.
MAX_LINES = 120
MIN_LINES_PER_NODE = 4


async def dump_stacks(cluster_name: str | None, job_id: str | None) -> list[str]:
    """Run ``remote/node/stack_dump.py`` beside the job on each of its nodes (``srun --overlap``).

    Takes at most a minute and never raises: an error becomes a line of the result.

    Args:
        cluster_name: Name of the cluster file; None where there is no Slurm job.
        job_id: Slurm's id; None where there is no Slurm job.

    Returns:
        Lines of the form ``NODE: ...``, by node; empty where there is no Slurm job.
    """
    if not (cluster_name and is_job_id(job_id)):
        return []
    cluster = await asyncio.to_thread(load_cluster, cluster_name)
    program = await asyncio.to_thread(_program)
    # --overlap: the step shares the job's CPUs, memory and GPUs instead of waiting for them (srun(1), 20.11 and later).
    step = ["srun", "--quiet", "--overlap", f"--jobid={job_id}", "--ntasks-per-node=1", "--chdir=/"]
    argv = ["timeout", "--kill-after=5", str(SRUN_TIMEOUT_SECONDS), *step, cluster.login_python, "-"]
    try:
        async with open_client(cluster) as client:
            done = await client.run(argv, stdin=program, reserve=RESERVE)
    except ClusterUnavailable as error:
        return [f"no stack dump: {error}"]
    lines = _limit_by_node(done.stdout.splitlines())
    if done.code:
        why = done.stderr.strip()[-300:] or f"srun ended with exit code {done.code}"
        lines.append(f"no stack dump from some or all nodes: {why}")
    return lines


def _program() -> str:
    return resources.files("llm_bridge.remote").joinpath("node", "stack_dump.py").read_text(encoding="utf-8")


def _limit_by_node(lines: list[str]) -> list[str]:
    """Return the first lines of each node; a line starts with its node's name."""
    nodes: dict[str, list[str]] = {}
    for line in lines:
        nodes.setdefault(line.partition(":")[0], []).append(line)
    each = max(MIN_LINES_PER_NODE, MAX_LINES // max(1, len(nodes)))
    return [line for node in sorted(nodes) for line in nodes[node][:each]]
