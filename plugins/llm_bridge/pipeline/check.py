"""First task of a run: find every error that can be found before anything is submitted."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from llm_bridge.config.loader import describe_errors, load_cluster
from llm_bridge.exceptions import ClusterUnavailable, ConfigError, LoginDenied, LoginNodeUnreachable
from llm_bridge.operators.base import ClusterOperator
from llm_bridge.operators.exceptions import logs_config_errors
from llm_bridge.pipeline import choice, first_contact, site_checks, stages, start
from llm_bridge.pipeline.plan import Plan, check_combinations, clusters_of, make_plan
from llm_bridge.remote.messages import ERROR, WARNING, Finding
from llm_bridge.remote.node.verl import ppo_rules
from llm_bridge.remote.shared_transport import run_in_task
from llm_bridge.remote.transport import CommandFailed
from llm_bridge.slurm.client import SlurmClient, open_client
from llm_bridge.slurm.spec import SlurmJob

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

# A login node that has never answered is waited for that long.
FIRST_CONTACT_SECONDS = 60.0


class CheckOperator(ClusterOperator):
    """Operator that makes the run's :class:`~llm_bridge.pipeline.plan.Plan` and checks it on the cluster."""

    ui_color = "#eeeeee"
    # True if a login node that has never answered gets its last chance.
    _is_last_contact = False

    @logs_config_errors
    def execute(self, context: Context) -> dict[str, Any]:
        """Make the plan from the trigger form, and check it.

        Returns:
            The plan as JSON values, for the tasks that follow.

        Raises:
            ConfigError: Names every error that was found; no retry follows.
        """
        plan, is_checked = self._choose(context)
        log.info(
            "run %r: recipe %s on cluster %s, stages %s",
            plan.run_name, plan.recipe.name, plan.cluster, ", ".join(plan.stages),
        )  # fmt: skip
        log.info("directory of this run on the cluster: %s", plan.directory)
        if plan.start:
            log.info("starts at stage %s from %s", plan.start.stage, plan.start.text)
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
        if not is_checked:
            plan = self._check(plan)
        choice.keep(context["task_state_store"], plan)
        for stage, result in plan.start.results.items() if plan.start else ():
            log.info("taken over: result %s of stage %s in %s", result, stage, plan.result_dir(stage))
        return plan.model_dump(mode="json")

    def _check(self, plan: Plan) -> Plan:
        """Return the plan as :func:`check_site` completes it, or wait for its cluster."""
        cluster = load_cluster(plan.cluster)
        try:
            plan = run_in_task(check_site(plan))
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
        return plan

    def _choose(self, context: Context) -> tuple[Plan, bool]:
        """Return the plan on the run's cluster, and True if that cluster has checked it.

        The cluster is the one on which the run has begun, or else of several the one that can start it first.
        """
        clusters = _clusters(context)
        if found := choice.chosen_before(context["task_state_store"]):
            name, why = found
            if why or clusters != [name]:
                log.info(
                    "this run has begun on cluster %s, and stays there with its jobs and data%s. To use another "
                    "cluster, trigger a new run",
                    name,
                    f" ({why})" if why else f", although {', '.join(clusters) or 'no cluster'} is named now",
                )
            return _plan(context, name).model_copy(update={"cluster_choice": why}), False
        if len(clusters) < 2:
            return _plan(context), False
        try:
            plan = run_in_task(
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
        return plan, True

    @logs_config_errors
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


async def check_site(plan: Plan) -> Plan:
    """Check paths, token, what the run starts from, and every job (``sbatch --test-only``) on the login node.

    Returns:
        The plan, with what the cluster has of the model or the run that it starts from.

    Raises:
        ConfigError: Names every error that was found.
        ClusterUnavailable: The login node or slurmctld does not answer, and no error was found until then.
    """
    jobs, cluster = planned_jobs(plan), load_cluster(plan.cluster)
    found = await site_checks.tokens(cluster, jobs, uploads="upload" in plan.stages)
    found += site_checks.environment(cluster)
    try:
        async with open_client(plan.cluster) as client:
            python, usable = await site_checks.login_python(client, runs_guard="ppo" in plan.stages)
            found.append(python)
            if usable:
                request = site_checks.request_for(plan, cluster)
                found += await site_checks.login_node(usable, request)
                plan = await _with_start(usable, plan, found)
                found += await site_checks.jobs(usable, jobs)
    except (ConfigError, LoginDenied) as error:
        found.append(site_checks.no_login(cluster, error))
    except CommandFailed as error:
        found.append(Finding("login node", ERROR, str(error)))
    except ClusterUnavailable as error:
        if not _errors(found):
            raise
        found.append(site_checks.unavailable(cluster, error))
    for finding in found:
        if finding.result != ERROR:
            log.log(logging.WARNING if finding.result == WARNING else logging.INFO, "%s", finding.sentence)
    problems = _errors(found)
    if len(problems) == 1:
        message = f"cluster {plan.cluster!r}: {problems[0].rstrip('.')}. Nothing was submitted."
    elif problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        message = f"cluster {plan.cluster!r}: {len(problems)} errors, nothing was submitted:{lines}"
    if problems:
        raise ConfigError(message, [*problems, f"cluster {plan.cluster!r}: nothing was submitted"])
    return plan


async def _with_start(client: SlurmClient, plan: Plan, found: list[Finding]) -> Plan:
    """Return the plan with what the cluster has of its start; add what is missing of it to the findings."""
    if not plan.start:
        return plan
    problems: list[str] = []
    looked_up = await start.look_up(client, plan.start, plan.base_model_path, problems)
    completed = plan.model_copy(update={"start": looked_up})
    try:
        check_combinations(completed, client.cluster)
    except ConfigError as error:  # such as publish.better_than: sft with a run that has no SFT
        problems.append(str(error))
    found += [Finding("start", ERROR, problem) for problem in problems]
    return completed


def _errors(found: Iterable[Finding]) -> list[str]:
    return list(dict.fromkeys(finding.sentence for finding in found if finding.result == ERROR))


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
