"""Checks of a site, each of which returns findings: those of the first task of a run, and of the doctor."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence

from llm_bridge.config.cluster import Cluster
from llm_bridge.exceptions import (
    ClusterUnavailable,
    ConfigError,
    JobRefused,
    LoginNodeUnreachable,
    NoConnection,
    NotAcceptedYet,
)
from llm_bridge.pipeline.plan import TRAINING, Plan
from llm_bridge.remote import connections
from llm_bridge.remote.messages import (
    ERROR,
    OK,
    WARNING,
    CheckAnswer,
    CheckRequest,
    Finding,
    HubAccess,
)
from llm_bridge.remote.transport import find_programs
from llm_bridge.slurm.capacity import TooLarge
from llm_bridge.slurm.client import SlurmClient
from llm_bridge.slurm.spec import ResolvedJob, SlurmJob

log = logging.getLogger(__name__)

# Options of sbatch.
Options = tuple[tuple[str, str | None], ...]
HUB_ENDPOINT = "https://huggingface.co"
# Oldest Pythons that can run the helpers on the login node, and Ray's head guard.
HELPER_PYTHON = (3, 6)
GUARD_PYTHON = (3, 9)
# For Python 2, too.
PRINT_VERSION = "import sys; print('llm-bridge %d.%d' % sys.version_info[:2])"
MAX_QUOTED_LENGTH = 300


def file_of(cluster: Cluster) -> str:
    """Return the name of a cluster file, for messages."""
    return f"include/clusters/{cluster.name}.yaml"


def no_login(cluster: Cluster, error: Exception) -> Finding:
    """Return the finding for a login that fails because of a setting.

    Args:
        cluster: The cluster.
        error: Error of the connection.
    """
    text = str(error).rstrip(".")
    if isinstance(error, NoConnection):
        text = f"ssh_conn_id in {file_of(cluster)}: {text}"
    return Finding("login", ERROR, f"{text}. What is on the cluster is checked once the login works")


def unavailable(cluster: Cluster, error: ClusterUnavailable) -> Finding:
    """Return the finding for a cluster that does not answer, which is an error only beside others."""
    detail = f"the rest could not be checked, because the cluster does not answer: {error}"
    return Finding(
        "login", ERROR, detail, connection_hint(cluster) if isinstance(error, LoginNodeUnreachable) else ""
    )


def connection_hint(cluster: Cluster) -> str:
    """Return where host and port of the login node are set, as an action; empty where Airflow runs on it."""
    if not cluster.ssh_conn_id:
        return ""
    return (
        f"check host and port of the Airflow connection {cluster.ssh_conn_id!r} (Admin > Connections), which "
        f"ssh_conn_id in {file_of(cluster)} names"
    )


async def tokens(cluster: Cluster, jobs: Iterable[SlurmJob], *, uploads: bool) -> list[Finding]:
    """Check the connections that hold the tokens of jobs.

    Args:
        cluster: The cluster.
        jobs: The jobs.
        uploads: One of them uploads.
    """
    keys = {cluster.hub.conn_id: "hub.conn_id", cluster.wandb_conn_id: "wandb_conn_id"}
    found = []
    for conn_id in sorted({conn_id for job in jobs for conn_id in job.secrets.values()}):
        key = keys[conn_id]
        try:
            await asyncio.to_thread(connections.secret, conn_id)
        except ConfigError as error:
            action = ""
            if conn_id == cluster.hub.conn_id and not uploads:
                action = "these stages do not upload: for public models and data you may delete `hub`"
            found.append(Finding(key, ERROR, f"{key} in {file_of(cluster)}: {error}", action))
    return found


def environment(cluster: Cluster) -> list[Finding]:
    """Warn of a cluster file without an environment for jobs."""
    used = cluster.environment
    if used.venv or used.conda or used.container or used.modules:
        return []
    detail = f"environment in {file_of(cluster)} is empty: jobs use the python in PATH, which must have torch and verl"
    return [Finding("environment", WARNING, detail, "set venv, conda or container")]


async def login_python(client: SlurmClient, *, runs_guard: bool) -> tuple[Finding, SlurmClient | None]:
    """Check ``login_python``.

    Args:
        client: Client of the cluster.
        runs_guard: Jobs run Ray's head guard, outside a container with this Python.

    Returns:
        The finding, and a client that can run helpers: where ``login_python`` cannot, one with the login node's
        python3; None if there is none.
    """
    cluster = client.cluster
    # Ray's head guard needs srun and scontrol, so that it runs outside the container, with this Python as well.
    with_guard = bool(cluster.environment.container) and runs_guard
    oldest = GUARD_PYTHON if with_guard else HELPER_PYTHON
    version, said = await _python_version(client, cluster.login_python)
    if version and version >= oldest:
        text = f"{cluster.login_python} is Python {version[0]}.{version[1]}"
        return Finding("login_python", OK, text), client
    path = (await find_programs(client.transport, ["python3"])).get("python3", "")
    other = (await _python_version(client, path))[0] if path else None
    usable = other is not None and other >= oldest
    wanted = f"{oldest[0]}.{oldest[1]} or newer"
    if with_guard:
        wanted += " on login and compute nodes, where Ray's head guard runs with it, outside the container"
    cause = f"it is Python {version[0]}.{version[1]}" if version else said
    finding = Finding(
        "login_python",
        ERROR,
        f"login_python in {file_of(cluster)}: {cluster.login_python} is no usable Python on the login node: {cause}",
        f"set it to a Python of version {wanted}{f', such as {path}' if usable else ''}",
    )
    if version and version >= HELPER_PYTHON:
        return finding, client
    if not usable:
        return finding, None
    return finding, SlurmClient(cluster.model_copy(update={"login_python": path}), client.transport)


async def _python_version(client: SlurmClient, python: str) -> tuple[tuple[int, int] | None, str]:
    """Return the version of a program on the login node, or None and what it printed if it is no Python."""
    done = await client.transport.run([python, "-I", "-c", PRINT_VERSION])
    version = re.search(r"^llm-bridge ([0-9]+)\.([0-9]+)$", done.stdout, re.MULTILINE)
    if version is None:
        return None, (done.stderr.strip() or done.stdout.strip() or "no output")[:MAX_QUOTED_LENGTH]
    return (int(version[1]), int(version[2])), ""


def request_for(plan: Plan, cluster: Cluster) -> CheckRequest:
    """Return the checks of the login node for a run: workspace, paths that its jobs read, Hub token."""
    return CheckRequest(
        workspace=plan.workspace,
        readable=readable(cluster, [plan]),
        hub=hub(plan, cluster),
        workspace_setting=f"workspace in {file_of(cluster)}",
        min_free_gib=cluster.preflight.min_free_gib if cluster.preflight else 0,
        environment=cluster.environment.venv or cluster.environment.container or "",
    )


async def login_node(client: SlurmClient, request: CheckRequest) -> list[Finding]:
    """Check the site's files and the Hub's token on the login node."""
    answer: CheckAnswer = await client.call_helper("check_site", request, CheckAnswer)
    return list(answer.findings)


async def jobs(
    client: SlurmClient, planned: Sequence[SlurmJob], accepted: dict[Options, str] | None = None
) -> list[Finding]:
    """Check with ``sbatch --test-only`` that Slurm accepts jobs, and find all reasons for which it never would.

    Args:
        client: Client of the cluster.
        planned: The jobs.
        accepted: Options that Slurm has accepted -> its answer. Jobs with these are not tested again, and those of
            other jobs are added. None tests every job.
    """
    found: list[Finding] = []
    refused: list[tuple[ResolvedJob, JobRefused]] = []
    fits: list[ResolvedJob] = []
    for job in planned:
        resolved = job.resolve(client.cluster)
        name = job.stage or resolved.name
        found += [Finding(f"job {name}", WARNING, f"{name}: {note}") for note in resolved.notes]
        try:
            options = tuple(resolved.directives)
            answer = (accepted or {}).get(options) or await client.test_only(resolved)
            if accepted is not None:
                accepted[options] = answer
            found.append(Finding(f"job {name}", OK, f"{name}: {answer}"))
            fits.append(resolved)
        except NotAcceptedYet as error:  # its own task submits it, and waits then
            found.append(Finding(f"job {name}", WARNING, f"{name}: {error}. The run continues"))
        except JobRefused as error:
            refused.append((resolved, error))
    found += await client.beyond_partitions(fits)
    return found + (await _refusals(client, refused) if refused else [])


async def _refusals(client: SlurmClient, refused: Sequence[tuple[ResolvedJob, JobRefused]]) -> list[Finding]:
    found: list[Finding] = []
    name = client.cluster.name
    causes: dict[str, list[str]] = {}
    sizes: dict[TooLarge, list[str]] = {}
    wrong_names = await client.wrong_names([resolved for resolved, _ in refused])
    # sbatch reports one error only: behind a wrong name there may be a size that no node has.
    too_large = await client.too_large([resolved for resolved, _ in refused])
    for (resolved, refusal), wrong, large in zip(refused, wrong_names, too_large, strict=True):
        found += [each.finding(name) for each in wrong]
        if not wrong:
            causes.setdefault(refusal.cause, []).append(resolved.name)
            continue
        for size in large:
            sizes.setdefault(size, []).append(resolved.name)
    for size, templates in sizes.items():
        detail = (
            f"{size.key} {size.wanted} of the jobs {', '.join(dict.fromkeys(templates))} is too large: the largest "
            f"node has {size.most}"
        )
        action = f"change it in include/clusters/{name}.yaml or the recipe"
        found.append(Finding(size.key, ERROR, detail, action))
    for cause, templates in causes.items():
        detail = f"Slurm on cluster {name!r} refuses the jobs {', '.join(dict.fromkeys(templates))}: {cause}"
        action = f"check include/clusters/{name}.yaml and the recipe's nodes, gpus_per_node and time_limit"
        found.append(Finding("jobs", ERROR, detail, action))
    return found


def readable(cluster: Cluster, plans: Sequence[Plan]) -> dict[str, str]:
    """Return the paths that jobs of some runs read, with the key and the file that set each one."""
    environment = cluster.environment
    keys: dict[str, str] = {}
    if environment.modules:
        keys[environment.module_init] = "environment.module_init"
    if environment.venv:
        keys[f"{environment.venv}/bin/activate"] = "environment.venv"
    if environment.conda:
        keys[environment.conda] = "environment.conda"
        keys[environment.conda_init or ""] = "environment.conda_init"
    container = environment.container or ""
    if container.startswith("/"):  # else an image in a registry
        keys[container] = "environment.container"
    if container:
        for mount in environment.container_mounts:
            keys[mount.partition(":")[0]] = "environment.container_mounts"
    if cluster.slurm_bin:
        keys[cluster.slurm_bin] = "slurm_bin"
    if cluster.hub.token_file and any(
        "prepare" in p.stages and "upload" not in p.stages for p in plans
    ):  # else see hub
        keys[cluster.hub.token_file] = "hub.token_file"
    found = {path: f"{key} in include/clusters/{cluster.name}.yaml" for path, key in keys.items()}
    for plan in plans:
        recipe = f"include/recipes/{plan.recipe.name}.yaml or the trigger form"
        paths = {plan.recipe.base_model: "base_model"}
        for stage in TRAINING:
            key = f"{stage}.data" if getattr(plan.recipe, stage).data else "data"
            if stage in plan.prepared and "prepare" in plan.stages:
                paths |= {
                    source.directory_or_file: f"{key}.source" for source in plan.data(stage).all_sources()
                }
        found |= {path: f"{key} in {recipe}" for path, key in paths.items() if path.startswith("/")}
    return found


def hub(plan: Plan, cluster: Cluster) -> HubAccess | None:
    """Return the Hub and the token to check; None where no job uploads, or where the token cannot be known here."""
    if "upload" not in plan.stages:
        return None
    file = f"include/clusters/{cluster.name}.yaml"
    access = HubAccess(
        cluster.variables.get("HF_ENDPOINT", HUB_ENDPOINT), token="", repo_id=plan.recipe.hub.repo_id or ""
    )
    if conn_id := cluster.hub.conn_id:
        source = f"the password of Airflow connection {conn_id!r} (hub.conn_id in {file})"
        try:
            return access._replace(token=connections.secret(conn_id), source=source)
        except ConfigError:
            return None  # reported already
    if path := cluster.hub.token_file:
        return access._replace(token_file=path, source=f"{path} (hub.token_file in {file})")
    if "HF_TOKEN" in cluster.variables:
        return None
    # The file of `hf auth login`, which huggingface_hub reads in the job.
    home = cluster.variables.get("HF_HOME", "~/.cache/huggingface")
    path = cluster.variables.get("HF_TOKEN_PATH", f"{home}/token")
    source = (
        f"the stage 'upload' needs a Hub token: set hub.conn_id in {file} to the id of an Airflow connection (type "
        f"Generic) whose password is one, or select stages without 'upload'. Without hub.conn_id jobs use {path}"
    )
    return access._replace(token_file=path, source=source)
