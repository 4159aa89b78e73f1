"""Read a site's limits of partitions, associations and QOS, and compare them with a cluster file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from llm_bridge.config.cluster import Cluster
from llm_bridge.remote.messages import ERROR, OK, WARNING, Finding
from llm_bridge.slurm import time_limit
from llm_bridge.slurm.site_names import Run
from llm_bridge.slurm.spec import ResolvedJob

# Fields of sacctmgr(1) -> their names in findings.
ASSOCIATION = {
    "account": "account",
    "partition": "partition",
    "qos": "QOS",
    "maxjobs": "MaxJobs",
    "maxsubmit": "MaxSubmitJobs",
    "maxwall": "MaxWall",
    "maxtres": "MaxTRES",
    "grptres": "GrpTRES",
}
QOS = {
    "name": "name",
    "maxwall": "MaxWall",
    "maxjobspu": "MaxJobsPerUser",
    "maxsubmitpu": "MaxSubmitJobsPerUser",
    "maxtres": "MaxTRES",
    "maxtrespu": "MaxTRESPerUser",
    "grptres": "GrpTRES",
}
Row = Mapping[str, str]


async def partitions(run: Run) -> dict[str, dict[str, str]]:
    """Return the partitions with their settings, hidden ones too; none if scontrol fails.

    Args:
        run: Runs a command on the login node.
    """
    done = await run(["scontrol", "-a", "-o", "show", "partition"])
    rows = [dict(re.findall(r"(\w+)=(\S+)", line)) for line in done.stdout.splitlines()]
    return {row["PartitionName"]: row for row in rows if "PartitionName" in row} if done.code == 0 else {}


async def associations(run: Run, user: str) -> list[Row]:
    """Return a user's associations; none without accounting.

    Args:
        run: Runs a command on the login node.
        user: Name of the user.
    """
    return await _sacctmgr(run, ["associations", f"user={user}"], ASSOCIATION)


async def qos(run: Run) -> list[Row]:
    """Return the site's QOS; none without accounting."""
    return await _sacctmgr(run, ["qos"], QOS)


async def _sacctmgr(run: Run, what: list[str], fields: Mapping[str, str]) -> list[Row]:
    done = await run(["sacctmgr", "-n", "-P", "show", *what, f"format={','.join(fields)}"])
    if done.code:
        return []
    rows = [line.strip().split("|") for line in done.stdout.splitlines()]
    return [dict(zip(fields.values(), row, strict=True)) for row in rows if len(row) == len(fields)]


def in_partitions(cluster: Cluster, known: Mapping[str, Row]) -> list[Finding]:
    """Compare the cluster file with the limits of its partitions, or of the default one.

    Args:
        cluster: The cluster.
        known: Output of :func:`partitions`.
    """
    names = (
        cluster.partition.split(",")
        if cluster.partition
        else [n for n in known if known[n].get("Default") == "YES"]
    )
    found = []
    for name in names:
        if row := known.get(name):
            found.append(_in_partition(cluster, name, row))
    if not names and known:
        detail = f"partition in include/clusters/{cluster.name}.yaml is not set, and Slurm has no default partition"
        found.append(Finding("partition", ERROR, detail, f"choose from {', '.join(sorted(known))}"))
    return found


def _in_partition(cluster: Cluster, name: str, row: Row) -> Finding:
    state = row.get("State", "UP")
    shown = {key: row[key] for key in ("TotalNodes", "MaxNodes", "MaxTime", "DefaultTime") if key in row}
    detail = f"{name}: {state}, {_listed(shown)}"
    if state != "UP":
        action = "its jobs wait until it is UP again: wait, or choose another partition"
        return Finding("partition", WARNING, detail, action)
    if too_long := _too_long(cluster, f"partition {name} (MaxTime)", row.get("MaxTime")):
        return Finding("partition", ERROR, *too_long)
    return Finding("partition", OK, detail)


async def beyond_partitions(jobs: Iterable[ResolvedJob], run: Run) -> list[Finding]:
    """Return findings about jobs whose time limit none of their partitions allows.

    Without ``EnforcePartLimits`` (slurm.conf(5)), Slurm accepts such a job, and lets it wait for ever with the reason
    PartitionTimeLimit. A QOS with the flag of that name may allow it.

    Args:
        jobs: Jobs that Slurm accepts.
        run: Runs a command on the login node.
    """
    given = [(job, dict(job.directives)) for job in jobs]
    given = [(job, options) for job, options in given if options.get("time")]
    known = await partitions(run) if given else {}
    too_long: dict[tuple[str, str], list[ResolvedJob]] = {}
    for job, options in given:
        names = (options.get("partition") or "").split(",")
        rows = [known.get(name) for name in names if name]
        rows = rows or [row for row in known.values() if row.get("Default") == "YES"]
        limits = [(row or {}).get("MaxTime", "") for row in rows]
        limit = str(options["time"])
        if limits and all(_exceeds(limit, most) for most in limits):
            shown = ", ".join(f"{row['PartitionName']} {row['MaxTime']}" for row in rows if row)
            too_long.setdefault((limit, shown), []).append(job)
    result = WARNING if too_long and await _qos_lifts_limits(run) else ERROR
    found = []
    for (limit, shown), of_limit in too_long.items():
        names = list(dict.fromkeys(job.job.stage or job.name for job in of_limit))
        detail = (
            f"time limit {limit} of the jobs {', '.join(names)} is more than partitions allow (MaxTime): {shown}. Such "
            "a job waits for ever (PartitionTimeLimit)"
        )
        action = (
            f"lower time_limit of these stages in the recipe, or in include/clusters/{of_limit[0].cluster.name}.yaml, "
            "or choose another partition"
        )
        found.append(Finding("time_limit", result, detail, action))
    return found


async def _qos_lifts_limits(run: Run) -> bool:
    """Return True if jobs with one of the site's QOS may exceed a partition's limit."""
    done = await run(["sacctmgr", "-n", "-P", "show", "qos", "format=flags"])
    return done.code == 0 and "PartitionTimeLimit" in done.stdout


def _exceeds(limit: str, most: str) -> bool:
    """Return True if a time limit is above another one; False if one is unlimited or unknown."""
    try:
        return time_limit.parse(limit) > time_limit.parse(most)
    except ValueError:  # none, UNLIMITED
        return False


def of_user(
    cluster: Cluster, user: str, own: list[Row], known: Iterable[Row], *, enforces: bool = True
) -> list[Finding]:
    """Compare the cluster file with the limits of the user's account and QOS.

    Args:
        cluster: The cluster.
        user: Name of the user.
        own: Output of :func:`associations`.
        known: Output of :func:`qos`.
        enforces: Slurm enforces limits (``AccountingStorageEnforce``); where it does not, none is exceeded.
    """
    known = list(known)
    if not own:
        return [
            Finding(
                "account",
                OK,
                f"sacctmgr lists no associations of {user}: Slurm limits none of its jobs by account",
            )
        ]
    used = [row for row in own if not cluster.account or row["account"].lower() == cluster.account.lower()]
    found = []
    if not used:  # where Slurm enforces accounts, this is an error of another check
        accounts = sorted({row["account"] for row in own})
        found.append(_not_listed(cluster, "account", "account", cluster.account, user, accounts))
    chosen = [row for row in known if cluster.qos and row["name"].lower() == cluster.qos.lower()]
    # Of QOS and account, Slurm uses the first that has the limit.
    by_account = enforces and not any(row["MaxWall"] for row in chosen)
    rows = _for_partition(cluster, used)
    limits = [_too_long(cluster, f"account {row['account']} (MaxWall)", row["MaxWall"]) for row in rows]
    # Which account is the default one is unknown here.
    is_certain = by_account and (bool(cluster.account) or all(limits))
    for row, too_long in zip(rows, limits, strict=True):
        ok = Finding("account", OK, _listed(row))
        found.append(Finding("account", ERROR, *too_long) if too_long and is_certain else ok)
    own_qos = sorted({name for row in used or own for name in row["QOS"].split(",") if name})
    if cluster.qos and cluster.qos.lower() not in map(str.lower, own_qos):
        found.append(_not_listed(cluster, "QOS", "qos", cluster.qos, user, own_qos))
    names = {name.lower() for name in ([cluster.qos] if cluster.qos else own_qos)}
    for row in known:
        if row["name"].lower() not in names:
            continue
        too_long = _too_long(cluster, f"QOS {row['name']} (MaxWall)", row["MaxWall"]) if cluster.qos else None
        shown = _listed({key: value for key, value in row.items() if key != "name"}) or "no limits"
        ok = Finding("QOS", OK, f"{row['name']}: {shown}")
        found.append(Finding("QOS", ERROR, *too_long) if too_long and enforces else ok)
    return found


def _for_partition(cluster: Cluster, rows: list[Row]) -> list[Row]:
    """Return the associations for the cluster file's partitions: an account may have some of their own."""
    if not cluster.partition:
        return [row for row in rows if not row["partition"]]
    names = cluster.partition.split(",")
    found = []
    for account in dict.fromkeys(row["account"] for row in rows):
        of_account = [row for row in rows if row["account"] == account]
        own = [row for row in of_account if row["partition"] in names]
        found += own or [row for row in of_account if not row["partition"]]
    return found


def _not_listed(
    cluster: Cluster, check: str, key: str, value: str | None, user: str, valid: list[str]
) -> Finding:
    detail = (
        f"{key} in include/clusters/{cluster.name}.yaml: sacctmgr lists no {check} {value!r} for {user}. This Slurm "
        "does not enforce it, and accepts jobs"
    )
    return Finding(check, WARNING, detail, f"choose from {', '.join(valid)}, or delete the key")


def _too_long(cluster: Cluster, where: str, most: str | None) -> tuple[str, str] | None:
    """Return detail and action for a time limit above another one; None if it fits, or if one is unknown."""
    if not _exceeds(cluster.time_limit or "", most or ""):
        return None
    file = f"include/clusters/{cluster.name}.yaml"
    return (
        f"time_limit {cluster.time_limit} in {file} is more than {where} allows: {most}. Such a job waits for ever",
        f"set time_limit to {most} or less",
    )


def _listed(row: Row) -> str:
    return ", ".join(f"{key} {value}" for key, value in row.items() if value)
