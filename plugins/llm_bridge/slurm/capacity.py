"""Compare a job with the nodes that its partition has, in service or not: "never" and "not now" differ."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace

from llm_bridge.slurm.spec import ResolvedJob

# The reason comes last, because it may contain any character.
SINFO_FORMAT = "%P|%N|%t|%c|%m|%G|%f|%E"
# States (sinfo(1), short form) of a node that no job can start on now; a suffix shows power saving or no answer.
_OUT_OF_SERVICE = ("down", "drain", "drng", "fail", "boot", "reboot", "maint", "resv", "inval", "unk", "futr")
# gpu:8, gpu:a100:8(S:0-1), and gpu:(null):8(S:0-1) where slurmd found GPUs without a type.
_GPUS = re.compile(r"\bgpu(?::(?:\(null\)|[^:,(]+))?:(\d+)")
_UNITS = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}


@dataclass(frozen=True)
class Capacity:
    """Nodes of a partition for one job.

    Attributes:
        partition: The partition.
        configured: Number of nodes that fit the job.
        in_service: Number of those on which a job can start, now or when they are free.
        out_of_service: The others, each with state and reason.
        sizes: Size of each kind of node in the partition, whether it fits or not.
    """

    partition: str
    configured: int
    in_service: int
    out_of_service: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TooLarge:
    """Size of a job that no node of the cluster has.

    Attributes:
        key: Key of the cluster file or the recipe.
        wanted: Its value.
        most: The largest size of a node, with its unit.
    """

    key: str
    wanted: int
    most: str


ALL_NODES = ("sinfo", "-a", "-h", "-N", "-o", SINFO_FORMAT)


def argv(resolved: ResolvedJob) -> list[str]:
    """Return the sinfo call for :func:`measure`."""
    options = dict(resolved.directives)
    command = ["sinfo", "-h", "-N", "-o", SINFO_FORMAT]
    # Hidden partitions, too. sinfo refuses -a together with -p, which finds a hidden partition by itself.
    command += ["-p", partition] if (partition := options.get("partition")) else ["-a"]
    if nodes := options.get("nodelist"):
        command += ["-n", nodes]
    return command


def measure(resolved: ResolvedJob, output: str, excluded: Collection[str] = ()) -> Capacity | None:
    """Return the capacity of the job's partition; of the best one if it names several.

    Args:
        resolved: The job.
        output: Output of :func:`argv`.
        excluded: Names of nodes that the job excludes.

    Returns:
        None if the output has no node of a partition that the job may use.
    """
    named = bool(dict(resolved.directives).get("partition"))
    found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    sizes: dict[str, list[str]] = defaultdict(list)
    for line in output.splitlines():
        fields = line.split("|", 7)
        if len(fields) < 8:
            continue  # a site's wrapper may print other lines
        partition, node, state, cpus, memory, gres, features, reason = (field.strip() for field in fields)
        if not named and not partition.endswith("*"):
            continue  # "*" marks the default partition
        name = partition.rstrip("*")
        nodes = found[name]
        sizes[name].append(f"{cpus} CPUs, {memory} MiB, {'no GRES' if gres in ('', '(null)') else gres}")
        if node not in excluded and _fits(resolved, cpus, memory, gres, features):
            nodes.append((node, state, reason))
    capacities = [
        replace(_capacity(partition, nodes), sizes=tuple(dict.fromkeys(sizes[partition])))
        for partition, nodes in found.items()
    ]
    return max(capacities, key=lambda each: (each.configured, each.in_service), default=None)


def too_large(resolved: ResolvedJob, output: str) -> list[TooLarge]:
    """Return the sizes of a job that no node of any partition has.

    Args:
        resolved: The job.
        output: Output of sinfo with :data:`SINFO_FORMAT`, with the nodes of all partitions.
    """
    rows = [line.split("|", 7)[3:6] for line in output.splitlines() if line.count("|") >= 7]
    if not rows:
        return []
    own, options = resolved.job.resources, dict(resolved.directives)
    most_cpus = max(int(cpus) if cpus.isdigit() else 0 for cpus, _, _ in rows)
    most_gpus = max(sum(int(count) for count in _GPUS.findall(gres)) for _, _, gres in rows)
    cpus = int(options.get("cpus-per-task") or 1)
    found = []
    if most_cpus and cpus * own.ntasks_per_node > most_cpus:
        found.append(TooLarge("cpus_per_task", cpus, f"{most_cpus} CPUs"))
    # Where no node has GPUs for Slurm, gpu_request is the key to change: sbatch's refusal tells of it.
    if most_gpus and own.gpus_per_node > most_gpus:
        found.append(TooLarge("gpus_per_node", own.gpus_per_node, f"{most_gpus} GPUs"))
    return found


def _capacity(partition: str, nodes: list[tuple[str, str, str]]) -> Capacity:
    out = tuple(
        f"{node} ({state}{f', {reason}' if reason not in ('', 'none') else ''})"
        for node, state, reason in nodes
        if state.endswith("*") or state.startswith(_OUT_OF_SERVICE)
    )
    return Capacity(partition, len(nodes), len(nodes) - len(out), out)


def _fits(resolved: ResolvedJob, cpus: str, memory: str, gres: str, features: str) -> bool:
    """Return True if a node fits the job; a value that cannot be compared fits."""
    own, options = resolved.job.resources, dict(resolved.directives)
    if sum(int(count) for count in _GPUS.findall(gres)) < own.gpus_per_node:
        return False
    wanted_cpus = int(options.get("cpus-per-task") or 1) * own.ntasks_per_node
    if cpus.isdigit() and int(cpus) < wanted_cpus:
        return False
    size = re.fullmatch(r"(\d+)([KMGT]?)", options.get("mem") or "0")
    if size and memory.isdigit() and int(memory) < int(size[1]) * _UNITS[size[2] or "M"]:
        return False
    constraint = options.get("constraint") or ""
    names = constraint.split("&")
    simple = all(re.fullmatch(r"[\w.:-]+", name) for name in names)
    return not simple or set(names) <= set(features.split(","))
