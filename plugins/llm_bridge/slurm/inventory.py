"""Describe the partitions of a site and their nodes, for a cluster file to start from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# "gpu:8", "gpu:a100:8(S:0-1)", "gpu:2080ti:8", "gpu:1g.5gb:7"; several types in one node are separated by commas.
_GPUS = re.compile(r"\bgpu(?::(\(null\)|[^:,(]+))?:(\d+)")


@dataclass(frozen=True)
class Partition:
    """One partition.

    Attributes:
        name: Its name.
        default: Jobs without a partition get this one.
        nodes: Number of nodes.
        cpus: CPUs of its smallest node.
        memory_gib: Memory of its smallest node.
        gpus: GPUs of most of its nodes.
        types: Types of its GPUs, as Slurm names them.
        gres: GRES of most of its nodes, as sinfo prints them; empty without any.
        features: Features of its nodes.
    """

    name: str
    default: bool
    nodes: int
    cpus: int
    memory_gib: int
    gpus: int
    types: tuple[str, ...]
    gres: str
    features: tuple[str, ...]

    def __str__(self) -> str:
        gpus = f", {self.gres}" if self.gres else ", no GRES"
        default = ", the default" if self.default else ""
        return f"{self.name}: {self.nodes} node(s), {self.cpus} CPUs, {self.memory_gib} GiB{gpus}{default}"


def partitions(output: str) -> list[Partition]:
    """Return the partitions in an output of sinfo.

    Args:
        output: Output of :data:`~llm_bridge.slurm.capacity.ALL_NODES`.
    """
    rows: dict[str, list[list[str]]] = {}
    for line in output.splitlines():
        fields = [field.strip() for field in line.split("|", 7)]
        if len(fields) == 8 and fields[3].isdigit():  # a site's wrapper may print other lines
            rows.setdefault(fields[0], []).append(fields)
    return [_partition(name, nodes) for name, nodes in rows.items()]


def _partition(name: str, nodes: list[list[str]]) -> Partition:
    gres = Counter("" if node[5] == "(null)" else node[5] for node in nodes).most_common(1)[0][0]
    found = _GPUS.findall(gres)
    features = {name for node in nodes for name in node[6].split(",")} - {"", "(null)"}
    return Partition(
        name=name.rstrip("*"),
        default=name.endswith("*"),
        nodes=len(nodes),
        cpus=min(int(node[3]) for node in nodes),
        memory_gib=min(int(node[4]) if node[4].isdigit() else 0 for node in nodes) // 1024,
        gpus=sum(int(count) for _, count in found),
        types=tuple(kind for kind, _ in found if kind and kind != "(null)"),
        gres=gres,
        features=tuple(sorted(features)),
    )


def for_trainings(found: Iterable[Partition]) -> Partition | None:
    """Return the partition that trainings should use: with GPUs, the default one or the largest."""
    return max(found, key=lambda each: (each.gpus > 0, each.default, each.nodes * each.gpus), default=None)


def for_small_jobs(found: Iterable[Partition]) -> Partition | None:
    """Return the largest partition without GPUs; None if there is none."""
    return max((each for each in found if not each.gpus), key=lambda each: each.nodes, default=None)


def is_limited(row: Mapping[str, str]) -> str | None:
    """Return the time limit of a partition in scontrol's output; None without one."""
    limit = row.get("MaxTime", "UNLIMITED")
    return None if limit.upper() in ("UNLIMITED", "INFINITE", "NONE") else limit
