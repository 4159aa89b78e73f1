"""Compare the names in a job's options with those that the site has.

sbatch reports one wrong name at a time, and no valid ones.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from llm_bridge.remote.messages import ERROR, Finding
from llm_bridge.remote.transport import Completed
from llm_bridge.slurm.spec import ResolvedJob

Run = Callable[[list[str]], Awaitable[Completed]]

# -a: also hidden partitions.
_NODES = ["sinfo", "-a", "-h", "-N", "-o", "%R|%N|%f"]
_ENFORCED = re.compile(r"^AccountingStorageEnforce *= *(.*)$", re.MULTILINE)
# A constraint of plain features: a&b, a|b, a*2&b*4. Anything else is left to sbatch.
_SIMPLE_CONSTRAINT = re.compile(r"[\w.:-]+(\*\d+)?([&|,][\w.:-]+(\*\d+)?)*")
_MAX_SHOWN = 30
# Kinds of which each user has some.
_PERSONAL = ("account", "QOS")


@dataclass(frozen=True)
class SiteNames:
    """Names that the options of a job may have; None is unknown.

    Attributes:
        partitions: Names for ``partition``.
        nodes: Names for ``nodelist`` and ``exclude``.
        features: Names for ``constraint``.
        accounts: Names for ``account``: the user's, where Slurm enforces them.
        qos: Names for ``qos``: the user's, where Slurm enforces them.
    """

    partitions: Collection[str] | None = None
    nodes: Collection[str] | None = None
    features: Collection[str] | None = None
    accounts: Collection[str] | None = None
    qos: Collection[str] | None = None


@dataclass(frozen=True)
class WrongNames:
    """Value of a cluster file that names things that the site does not have.

    Attributes:
        key: Key of the cluster file.
        kind: Kind of the things.
        names: The wrong names.
        valid: The names that the site has.
    """

    key: str
    kind: str
    names: tuple[str, ...]
    valid: tuple[str, ...]

    def finding(self, cluster: str) -> Finding:
        """Return the error for users.

        Args:
            cluster: Name of the cluster file.
        """
        shown, more = ", ".join(self.valid[:_MAX_SHOWN]), len(self.valid) - _MAX_SHOWN
        todo = (
            f"choose from {shown}{f' and {more} more' if more > 0 else ''}, or delete" if shown else "delete"
        )
        names = ", ".join(map(repr, self.names)) + (" for this user" if self.kind in _PERSONAL else "")
        detail = f"{self.key} in include/clusters/{cluster}.yaml: Slurm has no {self.kind} {names}"
        return Finding(self.kind, ERROR, detail, f"{todo} the key")


async def ask(run: Run) -> SiteNames:
    """Return the site's names. A command that fails leaves its names unknown.

    Args:
        run: Runs a command on the login node.
    """
    lines = [line.strip().split("|", 2) for line in await _output(run, _NODES)]
    rows = [row for row in lines if len(row) == 3]  # a site's wrapper may print other lines
    if not rows:
        return SiteNames()
    # sinfo prints "(null)" for a node without features.
    features = {name for row in rows for name in row[2].split(",")} - {"(null)", ""}
    accounts, qos = await _associations(run)
    return SiteNames({row[0] for row in rows}, {row[1] for row in rows}, features, accounts, qos)


async def enforced(run: Run) -> set[str]:
    """Return what Slurm enforces of its accounting (``AccountingStorageEnforce``); nothing if scontrol fails.

    Args:
        run: Runs a command on the login node.
    """
    config = "\n".join(await _output(run, ["scontrol", "show", "config"]))
    found = _ENFORCED.search(config)
    return {word.lower() for word in found[1].strip().split(",")} - {"none", "(null)", ""} if found else set()


async def _associations(run: Run) -> tuple[set[str] | None, set[str] | None]:
    """Return accounts and QOS of the user, None where Slurm does not enforce them."""
    kinds = await enforced(run)
    if not kinds:
        return None, None
    user = "".join(await _output(run, ["id", "-un"])).strip()
    argv = ["sacctmgr", "-n", "-P", "show", "associations", f"user={user}", "format=account,qos"]
    rows = [row for line in await _output(run, argv) if len(row := line.strip().split("|")) == 2]
    qos = {name for row in rows for name in row[1].split(",") if name}
    return {row[0] for row in rows} or None, (qos or None) if kinds & {"qos", "all"} else None


async def wrong_names(resolved: ResolvedJob, site: SiteNames, run: Run) -> list[WrongNames]:
    """Return the names in a job's options that the site does not have.

    Args:
        resolved: The job.
        site: The site's names.
        run: Runs a command on the login node, to expand node lists.
    """
    options = {name: value for name, value in resolved.directives if value}
    given: list[tuple[str, str, Sequence[str], Collection[str] | None]] = [
        ("partition", "partition", options.get("partition", "").split(","), site.partitions),
        ("account", "account", [options.get("account", "")], site.accounts),
        ("qos", "QOS", [options.get("qos", "")], site.qos),
        ("constraint", "feature", _features(options.get("constraint", "")), site.features),
    ]
    for key in ("nodelist", "exclude"):
        listed = options.get(key)
        if listed and "/" not in listed and site.nodes is not None:
            given.append(
                (key, "node", await _output(run, ["scontrol", "show", "hostnames", listed]), site.nodes)
            )
    wrong = []
    for key, kind, names, valid in given:
        if valid is None:
            continue
        # Slurm compares accounts and QOS without regard to case (assoc_mgr.c).
        fold = str.lower if kind in _PERSONAL else str
        known = {fold(name) for name in valid}
        if unknown := tuple(name for name in names if name and fold(name) not in known):
            wrong.append(WrongNames(_key(resolved, key), kind, unknown, tuple(sorted(valid))))
    return wrong


def _features(constraint: str) -> list[str]:
    if not _SIMPLE_CONSTRAINT.fullmatch(constraint):
        return []
    return [name.partition("*")[0] for name in re.split("[&|,]", constraint)]


def _key(resolved: ResolvedJob, key: str) -> str:
    """Return the key of the cluster file that set an option."""
    stage = resolved.job.stage or ""
    defaults = resolved.cluster.stages.get(stage)  # type: ignore[call-overload]
    return f"stages.{stage}.{key}" if defaults and getattr(defaults, key) else key


async def _output(run: Run, argv: list[str]) -> list[str]:
    done = await run(argv)
    return [] if done.code else done.stdout.splitlines()
