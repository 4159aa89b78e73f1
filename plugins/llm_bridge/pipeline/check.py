"""First task of a run: find every error that can be found before anything is submitted."""

from __future__ import annotations

import asyncio
import logging
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from llm_bridge.config.cluster import Cluster
from llm_bridge.config.loader import describe_errors, load_cluster
from llm_bridge.exceptions import (
    ClusterUnavailable,
    ConfigError,
    JobRefused,
    LoginDenied,
    LoginNodeUnreachable,
    NoConnection,
    NotAcceptedYet,
)
from llm_bridge.operators.base import ClusterOperator
from llm_bridge.pipeline import choice, first_contact, stages
from llm_bridge.pipeline.plan import TRAINING, Plan, clusters_of, make_plan
from llm_bridge.remote import connections
from llm_bridge.remote.messages import CheckAnswer, CheckRequest, HubAccess
from llm_bridge.remote.node.verl import ppo_rules
from llm_bridge.remote.transport import CommandFailed
from llm_bridge.slurm.capacity import TooLarge
from llm_bridge.slurm.client import SlurmClient, open_client
from llm_bridge.slurm.spec import ResolvedJob, SlurmJob

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

HUB_ENDPOINT = "https://huggingface.co"
# A login node that has never answered is waited for that long.
FIRST_CONTACT_SECONDS = 60.0
# For Python 2, too.
# Oldest Pythons that can run the helpers on the login node, and Ray's head guard.
HELPER_PYTHON = (3, 6)
GUARD_PYTHON = (3, 9)
PRINT_VERSION = "import sys; print('llm-bridge %d.%d' % sys.version_info[:2])"
MAX_QUOTED_LENGTH = 300


class CheckOperator(ClusterOperator):
    """Operator that makes the run's :class:`~llm_bridge.pipeline.plan.Plan` and checks it on the cluster."""

    ui_color = "#eeeeee"
    # True if a login node that has never answered gets its last chance.
    _is_last_contact = False

    def execute(self, context: Context) -> dict[str, Any]:
        """Make the plan from the trigger form, and check it.

        Returns:
            The plan as JSON values, for the tasks that follow.

        Raises:
            ConfigError: Names every error that was found; no retry follows.
        """
        plan = self._choose(context)
        log.info(
            "run %r: recipe %s on cluster %s, stages %s",
            plan.run_name, plan.recipe.name, plan.cluster, ", ".join(plan.stages),
        )  # fmt: skip
        log.info("directory of this run on the cluster: %s", plan.directory)
        for change in plan.changes:
            log.info("changed against the recipe: %s", change)
        if "ppo" in plan.stages:
            log.info("PPO starts from %s", plan.ppo_starts_from)
            log.info(
                "algorithm %s: estimator %s, %s a critic",
                plan.recipe.ppo.algorithm,
                ppo_rules.in_recipe(plan.recipe.ppo.verl)(ppo_rules.ESTIMATOR),
                "with" if plan.has_critic else "without",
            )
            if unused := ppo_rules.unused_critic_keys(plan.recipe.ppo.verl):
                log.warning("without a critic, verl does not use %s", ", ".join(unused))
        cluster = load_cluster(plan.cluster)
        try:
            asyncio.run(check_site(plan))
        except LoginNodeUnreachable as error:
            if not first_contact.is_first(cluster):
                self.wait_for_cluster(plan.cluster, error)
            if self._is_last_contact:
                raise ConfigError(first_contact.describe(cluster, error)) from None
            self.wait_for_cluster(plan.cluster, error, limit_seconds=FIRST_CONTACT_SECONDS)
        except ClusterUnavailable as error:
            first_contact.record(cluster)
            self.wait_for_cluster(plan.cluster, error)
        first_contact.record(cluster)
        if plan.cluster_choice:
            choice.keep(context["task_state_store"], plan)
        return plan.model_dump(mode="json")

    def _choose(self, context: Context) -> Plan:
        """Return the plan on the run's cluster: the one chosen before, or else of several that can start it first."""
        if found := choice.chosen_before(context["task_state_store"]):
            log.info(
                "this run has chosen its cluster before, and stays there with its jobs and data (to use another one, "
                "trigger a new run): %s",
                found[1],
            )
            return _plan(context, found[0]).model_copy(update={"cluster_choice": found[1]})
        clusters = _clusters(context)
        if len(clusters) < 2:
            return _plan(context)
        try:
            plan = asyncio.run(
                choice.choose(
                    clusters,
                    partial(_plan, context),
                    check_site,
                    planned_jobs,
                    is_last_contact=self._is_last_contact,
                )
            )
        except choice.NoClusterNow as error:
            limit = FIRST_CONTACT_SECONDS if error.is_first_contact else choice.ASK_AGAIN_SECONDS
            self.wait_for_cluster(error.answer.cluster, error, limit_seconds=limit)
        log.info("%s", plan.cluster_choice)
        return plan

    def execute_again(self, context: Context, event: dict[str, Any]) -> Any:
        """Execute from the beginning after the cluster answers again, or has not answered a first contact."""
        chosen = choice.chosen_before(context["task_state_store"])
        if not chosen and len(_clusters(context)) > 1:
            # All are asked again, also where the one that was waited for does not answer.
            self._waits = event.get("waits", 0) if event["answers"] else 0
            self._is_last_contact = not event["answers"]
            return self.execute(context)
        if first_contact.is_first(load_cluster(_plan(context, chosen[0] if chosen else None).cluster)):
            self._is_last_contact = not event["answers"]
            return self.execute(context)
        return super().execute_again(context, event)


def _plan(context: Context, cluster: str | None = None) -> Plan:
    ti: Any = context["ti"]
    return make_plan(dict(context["params"]), ti.dag_id, ti.run_id, cluster_name=cluster)


def _clusters(context: Context) -> list[str]:
    return clusters_of(dict(context["params"]))


async def check_site(plan: Plan) -> None:
    """Check paths, token and every job (``sbatch --test-only``) on the login node.

    Raises:
        ConfigError: Names every error that was found.
        ClusterUnavailable: The login node or slurmctld does not answer, and no error was found until then.
    """
    jobs, cluster = planned_jobs(plan), load_cluster(plan.cluster)
    problems = await _missing_tokens(plan, cluster, jobs)
    used = cluster.environment
    if not (used.venv or used.conda or used.container or used.modules):
        log.warning(
            "environment in include/clusters/%s.yaml is empty: jobs use the python in PATH, which must have torch and "
            "verl. Set venv, conda or container",
            cluster.name,
        )
    try:
        async with open_client(plan.cluster) as client:
            usable = await _with_python(client, plan, problems)
            if usable:
                await _check_login_node(usable, plan, problems)
                await _check_jobs(usable, jobs, problems)
    except NoConnection as error:
        problems.append(
            f"ssh_conn_id in include/clusters/{cluster.name}.yaml: {error}. What is on the cluster is checked once the "
            "login works"
        )
    except (ConfigError, LoginDenied) as error:
        problems.append(f"{str(error).rstrip('.')}. What is on the cluster is checked once the login works")
    except CommandFailed as error:
        problems.append(str(error))
    except ClusterUnavailable as error:
        if not problems:
            raise
        problem = f"the rest could not be checked, because the cluster does not answer: {error}"
        if isinstance(error, LoginNodeUnreachable) and cluster.ssh_conn_id:
            problem += (
                f". Check host and port of the Airflow connection {cluster.ssh_conn_id!r} (Admin > Connections), which "
                f"ssh_conn_id in include/clusters/{cluster.name}.yaml names"
            )
        problems.append(problem)
    problems = list(dict.fromkeys(problems))
    if len(problems) == 1:
        raise ConfigError(f"cluster {plan.cluster!r}: {problems[0].rstrip('.')}. Nothing was submitted.")
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise ConfigError(f"cluster {plan.cluster!r}: {len(problems)} errors, nothing was submitted:{lines}")


async def _missing_tokens(plan: Plan, cluster: Cluster, jobs: list[SlurmJob]) -> list[str]:
    """Return the problems with the connections of tokens."""
    keys = {cluster.hub.conn_id: "hub.conn_id", cluster.wandb_conn_id: "wandb_conn_id"}
    problems = []
    for conn_id in sorted({conn_id for job in jobs for conn_id in job.secrets.values()}):
        try:
            await asyncio.to_thread(connections.secret, conn_id)
        except ConfigError as error:
            problem = f"{keys[conn_id]} in include/clusters/{cluster.name}.yaml: {error}"
            if conn_id == cluster.hub.conn_id and "upload" not in plan.stages:
                problem += ". These stages do not upload: for public models and data you may delete `hub`"
            problems.append(problem)
    return problems


async def _with_python(client: SlurmClient, plan: Plan, problems: list[str]) -> SlurmClient | None:
    """Return a client that can run helpers: where ``login_python`` cannot, one with the login node's python3.

    Args:
        client: Client of the cluster.
        plan: The run.
        problems: List to which an unusable ``login_python`` is added.
    """
    cluster = client.cluster
    # Ray's head guard needs srun and scontrol, so that it runs outside the container, with this Python as well.
    with_guard = bool(cluster.environment.container) and "ppo" in plan.stages
    oldest = GUARD_PYTHON if with_guard else HELPER_PYTHON
    if (said := await _python_error(client, cluster.login_python, oldest)) is None:
        return client
    found = (await client.transport.run(["which", "python3"])).stdout.strip()
    usable = found.startswith("/") and await _python_error(client, found, oldest) is None
    wanted = f"{oldest[0]}.{oldest[1]} or newer"
    if with_guard:
        wanted += " on login and compute nodes, where Ray's head guard runs with it, outside the container"
    problems.append(
        f"login_python in include/clusters/{cluster.name}.yaml: {cluster.login_python} is no usable Python on the "
        f"login node: {said}. Set it to a Python of version {wanted}{f', such as {found}' if usable else ''}"
    )
    if await _python_error(client, cluster.login_python, HELPER_PYTHON) is None:
        return client
    if not usable:
        return None
    return SlurmClient(cluster.model_copy(update={"login_python": found}), client.transport)


async def _python_error(client: SlurmClient, python: str, oldest: tuple[int, int]) -> str | None:
    """Return why a program on the login node is no Python of a version or a newer one; None if it is one."""
    done = await client.transport.run([python, "-I", "-c", PRINT_VERSION])
    version = re.search(r"^llm-bridge ([0-9]+)\.([0-9]+)$", done.stdout, re.MULTILINE)
    if version is None:
        return (done.stderr.strip() or done.stdout.strip() or "no output")[:MAX_QUOTED_LENGTH]
    number = int(version[1]), int(version[2])
    return None if number >= oldest else f"it is Python {number[0]}.{number[1]}"


async def _check_login_node(client: SlurmClient, plan: Plan, problems: list[str]) -> None:
    """Add the problems with the site's files and the Hub's token."""
    cluster = client.cluster
    request = CheckRequest(
        workspace=plan.workspace,
        readable=_readable(plan, cluster),
        hub=await asyncio.to_thread(_hub, plan, cluster),
        workspace_setting=f"workspace in include/clusters/{cluster.name}.yaml",
    )
    answer: CheckAnswer = await client.call_helper("check_site", request, CheckAnswer)
    for note in answer.notes:
        log.info("%s", note)
    problems += answer.problems


async def _check_jobs(client: SlurmClient, jobs: list[SlurmJob], problems: list[str]) -> None:
    """Add the reasons for which Slurm refuses jobs for good."""
    refused: list[tuple[ResolvedJob, JobRefused]] = []
    for job in jobs:
        resolved = job.resolve(client.cluster)
        for note in resolved.notes:
            log.warning("%s: %s", job.stage, note)
        try:
            log.info("%s: %s", job.stage, await client.test_only(resolved))
        except NotAcceptedYet as error:  # its own task submits it, and waits then
            log.warning("%s: %s. The run continues", job.stage, error)
        except JobRefused as error:
            refused.append((resolved, error))
    if not refused:
        return
    name = client.cluster.name
    causes: dict[str, list[str]] = {}
    sizes: dict[TooLarge, list[str]] = {}
    wrong_names = await client.wrong_names([resolved for resolved, _ in refused])
    # sbatch reports one error only: behind a wrong name there may be a size that no node has.
    too_large = await client.too_large([resolved for resolved, _ in refused])
    for (resolved, refusal), wrong, large in zip(refused, wrong_names, too_large, strict=True):
        problems += [each.describe(name) for each in wrong]
        if not wrong:
            causes.setdefault(refusal.cause, []).append(resolved.name)
            continue
        for size in large:
            sizes.setdefault(size, []).append(resolved.name)
    problems += [
        f"{size.key} {size.wanted} of the jobs {', '.join(dict.fromkeys(templates))} is too large: the largest node "
        f"has {size.most}. Change it in include/clusters/{name}.yaml or the recipe"
        for size, templates in sizes.items()
    ]
    problems += [
        f"Slurm on cluster {name!r} refuses the jobs {', '.join(dict.fromkeys(templates))}: {cause}. Check "
        f"include/clusters/{name}.yaml and the recipe's nodes and gpus_per_node"
        for cause, templates in causes.items()
    ]


def planned_jobs(plan: Plan) -> list[SlurmJob]:
    """Return the specification of every Slurm job that the run will submit.

    Raises:
        ConfigError: A value of the recipe or the cluster file makes no job.
    """
    builders = {
        "prepare": [stages.prepare],
        "sft": [stages.sft_job, stages.sft_merge],
        "ppo": [stages.ray_cluster],
        "merge": [stages.merge],
        "evaluate": [stages.evaluate],
        "upload": [stages.upload],
    }
    source = f"recipe {plan.recipe.name!r} on cluster {plan.cluster!r}"
    try:
        if "ppo" in plan.stages:
            stages.ppo(plan)
        return [build(plan) for stage in plan.stages for build in builders[stage]]
    except ValidationError as error:
        raise describe_errors(error, SlurmJob, source) from None


def _readable(plan: Plan, cluster: Cluster) -> dict[str, str]:
    """Return the paths that jobs of the run read, with the key and the file that set each one."""
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
    if cluster.hub.token_file and "prepare" in plan.stages and "upload" not in plan.stages:  # else see _hub
        keys[cluster.hub.token_file] = "hub.token_file"
    found = {path: f"{key} in include/clusters/{cluster.name}.yaml" for path, key in keys.items()}
    recipe = f"include/recipes/{plan.recipe.name}.yaml or the trigger form"
    paths = {plan.recipe.base_model: "base_model"}
    for stage in TRAINING:
        key = f"{stage}.data" if getattr(plan.recipe, stage).data else "data"
        if stage in plan.prepared and "prepare" in plan.stages:
            paths |= {source.directory_or_file: f"{key}.source" for source in plan.data(stage).all_sources()}
    found |= {path: f"{key} in {recipe}" for path, key in paths.items() if path.startswith("/")}
    return found


def _hub(plan: Plan, cluster: Cluster) -> HubAccess | None:
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
