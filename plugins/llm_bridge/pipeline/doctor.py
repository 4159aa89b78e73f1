"""Check a cluster file end to end: the findings of the DAG ``cluster_doctor`` and of ``python -m llm_bridge doctor``.

A check that depends on one that failed is skipped, and says so; all others are made.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_bridge.config.cluster import Cluster
from llm_bridge.config.loader import available, load_cluster, load_recipe
from llm_bridge.config.recipe import Recipe
from llm_bridge.exceptions import (
    ClusterUnavailable,
    ConfigError,
    HostKeyNotTrusted,
    LoginDenied,
    LoginNodeUnreachable,
    LoginShellFailed,
)
from llm_bridge.naming import slug
from llm_bridge.pipeline import first_contact, site_checks, tokens
from llm_bridge.pipeline.check import planned_jobs
from llm_bridge.pipeline.plan import Plan, make_plan
from llm_bridge.remote.messages import (
    ERROR,
    OK,
    SKIPPED,
    WARNING,
    CheckRequest,
    DescribeAnswer,
    DescribeRequest,
    Finding,
)
from llm_bridge.remote.transport import THIS_MACHINE, CommandFailed, find_programs, greetings
from llm_bridge.slurm import capacity, site_limits, site_names
from llm_bridge.slurm.client import SlurmClient, open_client
from llm_bridge.slurm.spec import Resources, SlurmJob

DAG = "cluster_doctor"
# Steps of a login, in the order in which they can fail.
LOGIN_STEPS = ("SSH connection", "SSH host key", "SSH login", "login shell")
COMMANDS = ("sbatch", "squeue", "sinfo", "scancel", "scontrol", "srun")
# Oldest Slurm that llm-bridge was read against (slurm/refusals.py).
OLDEST_SLURM = (22, 5)
HUB_CHECKS = ("Hub token", "Hub repository")
# Beginning of the advice in an error's text.
_ADVICE = re.compile(
    r"(?:\. |: |; then, |; )(?=(?:check|compare|set|create|enter|correct|store|copy|choose)\b)", re.IGNORECASE
)
_STARTS = re.compile(r"to start at (\S+)")


@dataclass
class Examination:
    """Findings without a Slurm job.

    Attributes:
        findings: Of the checks before the job.
        later: Of the tokens, which stand after the job.
        nodes: Number of nodes for the job; 0 where it cannot run.
        why_no_job: The reason for that.
    """

    findings: list[Finding] = field(default_factory=list)
    later: list[Finding] = field(default_factory=list)
    nodes: int = 0
    why_no_job: str = ""


def advised(check: str, error: Exception | str, action: str = "", result: str = ERROR) -> Finding:
    """Return a finding for an error, whose text may end with an advice.

    Args:
        check: Name of the check.
        error: The error.
        action: What to do, for a text without an advice.
        result: Result of the check.
    """
    text = str(error).strip().rstrip(".")
    found = _ADVICE.search(text)
    if found:
        advice = text[found.end() :]
        return Finding(check, result, text[: found.start()], advice[0].lower() + advice[1:])
    return Finding(check, result, text, action)


def skipped(checks: Iterable[str], because: str) -> list[Finding]:
    """Return a finding for each check that is not made."""
    return [Finding(check, SKIPPED, f"because {because}") for check in checks]


async def examine(name: str) -> Examination:
    """Make all checks of a cluster file that need no job.

    Args:
        name: Name of the cluster file.
    """
    try:
        cluster = await asyncio.to_thread(load_cluster, name)
    except ConfigError as error:
        findings = _file_errors("cluster file", error, "include/clusters/example.yaml explains every key")
        findings += skipped(["all other checks"], "the cluster file cannot be used")
        return Examination(findings, why_no_job="the cluster file cannot be used")
    findings = [Finding("cluster file", OK, f"{site_checks.file_of(cluster)} is valid")]
    plans, about_recipes = await asyncio.to_thread(_plans, cluster)
    examiner = _Examiner(cluster, plans, Examination([*findings, *about_recipes]))
    await examiner.run()
    return examiner.found


def _file_errors(check: str, error: ConfigError, action: str) -> list[Finding]:
    """Return a finding for each line of an error about a file."""
    first, *lines = str(error).splitlines()
    if not lines:
        return [advised(check, error, action)]
    where = first.partition(" is not valid")[0]
    return [Finding(check, ERROR, f"{where}: {line.strip().removeprefix('- ')}", action) for line in lines]


def _plans(cluster: Cluster) -> tuple[list[Plan], list[Finding]]:
    """Return a plan for each recipe that can run on the cluster, and the findings on the others."""
    plans: list[Plan] = []
    found: list[Finding] = []
    for name in available("recipes"):
        check = f"recipe {name}"
        try:
            recipe = load_recipe(name)
        except ConfigError as error:
            found += _file_errors(check, error, f"correct include/recipes/{name}.yaml")
            continue
        if (named := _clusters(recipe)) and cluster.name not in named:
            found += skipped([check], f"it names cluster {', '.join(named)}")
            continue
        stages = [stage for stage in recipe.stages if stage != "evaluate" or recipe.evaluate]
        if not recipe.hub.repo_id:  # a field of the form
            stages = [stage for stage in stages if stage != "upload"]
        try:
            plans.append(
                make_plan({"recipe": name, "cluster": cluster.name, "stages": stages}, DAG, "doctor")
            )
        except ConfigError as error:
            if named:
                found.append(advised(check, error))
            else:
                found += skipped([check], f"it does not fit this cluster: {' '.join(str(error).split())}")
    return plans, found


def _clusters(recipe: Recipe) -> list[str]:
    """Return the clusters that a recipe names; none for a recipe that may run on any."""
    return recipe.clusters or [name for name in [recipe.cluster] if name]


def _merged(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings about jobs, with one row for the warnings of all of them: most have the same cause."""
    others = [finding for finding in findings if finding.result != WARNING]
    warnings = [finding for finding in findings if finding.result == WARNING]
    if warnings:
        stages = dict.fromkeys(finding.detail.partition(":")[0] for finding in warnings)
        first = warnings[0].detail.partition(":")[2]
        others.append(warnings[0]._replace(detail=f"{', '.join(stages)}:{first}"))
    return list(dict.fromkeys(others))


class _Examiner:
    """Makes the checks one after the other, and records which of them failed."""

    def __init__(self, cluster: Cluster, plans: Sequence[Plan], found: Examination) -> None:
        self.cluster = cluster
        self.plans = plans
        self.found = found
        # Group of checks that failed -> reason for skipping those that depend on it.
        self.broken: dict[str, str] = {}
        self.client: SlurmClient
        # Options of jobs that Slurm has accepted; recipes have many in common.
        self.accepted: dict[site_checks.Options, str] = {}

    async def run(self) -> None:
        """Make all checks."""
        try:
            async with open_client(self.cluster) as self.client:
                await self._on_cluster()
        except ClusterUnavailable as error:  # at its end
            self.found.findings.append(advised("SSH connection", error))
        await self._tokens()
        reasons = [
            self.broken[group]
            for group in ("login", "python", "slurm", "names", "workspace")
            if group in self.broken
        ]
        if reasons:
            self.found.nodes = 0
        self.found.why_no_job = (
            reasons[0] if reasons else ("" if self.found.nodes else "no node is in service for it")
        )

    async def _on_cluster(self) -> None:
        file = site_checks.file_of(self.cluster)
        await self._group("login", LOGIN_STEPS[:1], (), self._login, "the login does not work")
        await self._group("python", ("login_python",), ("login",), self._python, "")
        described = ("login shell", "greeting", "environment variables")
        await self._group("description", described, ("login", "python"), self._description, "")
        await self._group("slurm", ("Slurm",), ("login",), self._slurm, "Slurm does not answer")
        await self._group("accounting", ("accounting",), ("login", "slurm"), self._accounting, "")
        names = ("partition", "account", "QOS")
        await self._group(
            "names", names, ("login", "slurm"), self._names, f"{file} has names that Slurm does not have"
        )
        await self._group("limits", ("limits",), ("login", "slurm", "names"), self._limits, "")
        for plan in self.plans:
            check, needs = (f"recipe {plan.recipe.name}",), ("login", "python", "slurm", "names")
            await self._group("recipes", check, needs, functools.partial(self._recipe, plan), "")
        await self._group("nodes", ("nodes",), ("login", "slurm", "names"), self._nodes, "no node fits a job")
        await self._group(
            "workspace",
            ("workspace",),
            ("login", "python"),
            self._files,
            "the workspace or the environment cannot be used",
        )

    async def _group(
        self,
        group: str,
        checks: Sequence[str],
        needs: Sequence[str],
        make: Callable[[], Awaitable[list[Finding]]],
        reason: str,
    ) -> None:
        """Make a group of checks, or skip it.

        Args:
            group: Name of the group.
            checks: Names of its checks, for one that is skipped or fails.
            needs: Groups that it depends on.
            make: Makes the checks.
            reason: Reason for skipping those that depend on it, if one of them is an error; empty: none does.
        """
        if broken := [self.broken[need] for need in needs if need in self.broken]:
            self.found.findings += skipped(checks, broken[0])
            return
        try:
            made = await make()
        except (ClusterUnavailable, CommandFailed, ConfigError) as error:
            made = [advised(checks[0], error)]
        self.found.findings += made
        if reason and any(finding.result == ERROR for finding in made):
            self.broken[group] = reason

    # ---- the login

    async def _login(self) -> list[Finding]:
        cluster = self.cluster
        good = [
            f"{first_contact.address(cluster)} answers",
            "it is the trusted one",
            "accepted",
            "it runs commands",
        ]
        try:
            await self.client.transport.run(["true"])
        except (ConfigError, LoginNodeUnreachable) as error:
            failed = next(
                (
                    n
                    for n, kind in ((1, HostKeyNotTrusted), (2, LoginDenied), (3, LoginShellFailed))
                    if isinstance(error, kind)
                ),
                0,
            )
            passed = [
                Finding(check, OK, text) for check, text in zip(LOGIN_STEPS[:failed], good, strict=False)
            ]
            action = site_checks.connection_hint(cluster)
            later = skipped(LOGIN_STEPS[failed + 1 : 3], f"the check '{LOGIN_STEPS[failed]}' failed")
            return [*passed, advised(LOGIN_STEPS[failed], error, action), *later]
        if cluster.ssh_conn_id is None:
            return [Finding("login node", OK, "Airflow runs on it (ssh_conn_id: null)")]
        return [Finding(check, OK, text) for check, text in zip(LOGIN_STEPS[:3], good, strict=False)]

    async def _python(self) -> list[Finding]:
        guard = any("ppo" in plan.stages for plan in self.plans)
        finding, client = await site_checks.login_python(self.client, runs_guard=guard)
        if client:
            self.client = client
        else:
            self.broken["python"] = f"no Python runs (login_python in {site_checks.file_of(self.cluster)})"
        return [finding]

    async def _description(self) -> list[Finding]:
        answer: DescribeAnswer = await self.client.call_helper(
            "describe_site", DescribeRequest(), DescribeAnswer
        )
        login = repr(self.cluster.ssh_conn_id) if self.cluster.ssh_conn_id else THIS_MACHINE
        greeting = greetings.get(login)
        said = f"it is skipped: {' '.join(greeting.split())}" if greeting else "none"
        cleared = (
            f"cleared for llm-bridge, no effect: {', '.join(answer.cleared)}"
            if answer.cleared
            else "none steers Slurm"
        )
        action = (
            "set in the cluster file what they mean for your jobs, such as account" if answer.cleared else ""
        )
        return [
            Finding("login shell", OK, f"{answer.shell or '(unknown)'} of user {answer.user}"),
            Finding("greeting", OK, said),
            Finding("environment variables", OK, cleared, action),
        ]

    # ---- Slurm

    async def _slurm(self) -> list[Finding]:
        file = site_checks.file_of(self.cluster)
        found = await find_programs(self.client.transport, COMMANDS)
        if missing := [command for command in COMMANDS if command not in found]:
            detail = f"the login node has no {', '.join(missing)} in PATH"
            return [Finding("Slurm", ERROR, detail, f"set slurm_bin in {file} to the directory of sbatch")]
        done = await self.client.run(["sinfo", "--version"])
        text = done.stdout.strip().rpartition("\n")[2]
        if not await self.client.ping():
            detail = f"{text}, but slurmctld does not answer (scontrol ping)"
            return [
                Finding(
                    "Slurm", ERROR, detail, "wait, or ask the administrators; jobs that run are not affected"
                )
            ]
        number = re.search(r"(\d+)\.(\d+)", text)
        if number and (int(number[1]), int(number[2])) < OLDEST_SLURM:
            detail = f"{text} is older than {OLDEST_SLURM[0]}.{OLDEST_SLURM[1]:02}, which nobody has tried"
            return [Finding("Slurm", WARNING, detail, "try a small run first")]
        return [Finding("Slurm", OK, f"{text}; slurmctld answers")]

    async def _accounting(self) -> list[Finding]:
        done = await self.client.run(["sacct", "-n", "-X", "-P", "-S", "now-1hours", "-o", "jobid"])
        if done.code == 0:
            return [Finding("accounting", OK, "sacct answers")]
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.code}").splitlines()[-1]
        detail = (
            f"sacct fails: {said}. Runs work without it, but GPU-hours and efficiency are unknown, and so is the end "
            "of a job that slurmctld has forgotten and that left no outcome"
        )
        file = site_checks.file_of(self.cluster)
        action = f"ask the administrators for slurmdbd; where sacct is elsewhere, correct slurm_bin in {file}"
        return [Finding("accounting", WARNING, detail, action)]

    def _probe(self, stage: str | None = None, **resources: Any) -> SlurmJob:
        return SlurmJob(
            cluster=self.cluster.name,
            stage=stage,
            script="#!/bin/sh\n",
            directory=f"{self.cluster.workspace}/doctor",
            resources=Resources(**resources),
        )

    async def _names(self) -> list[Finding]:
        # With GPUs, because nodelist applies to such jobs only.
        probes = [
            self._probe(stage, gpus_per_node=1).resolve(self.cluster)
            for stage in (None, *self.cluster.stages)
        ]
        wrong = await self.client.wrong_names(probes)
        return list(dict.fromkeys(each.finding(self.cluster.name) for job in wrong for each in job))

    async def _limits(self) -> list[Finding]:
        user = (await self.client.transport.run(["id", "-un"])).stdout.strip()
        run = self.client.run
        found = site_limits.in_partitions(self.cluster, await site_limits.partitions(run))
        own = await site_limits.associations(run, user)
        known = await site_limits.qos(run) if own else []
        enforces = bool(await site_names.enforced(run) & {"limits", "safe", "all"}) if own else False
        return found + site_limits.of_user(self.cluster, user, own, known, enforces=enforces)

    async def _nodes(self) -> list[Finding]:
        cluster = self.cluster
        # Slurm does not know the GPUs of a site without GRES.
        gpus = 0 if cluster.gpu_request == "none" else cluster.gpus_per_node
        probe = self._probe("ppo", gpus_per_node=gpus).resolve(cluster)
        done = await self.client.run(capacity.argv(probe))
        nodes = capacity.measure(probe, done.stdout if done.code == 0 else "")
        if nodes is None:
            return [
                Finding(
                    "nodes",
                    WARNING,
                    "sinfo lists no node of the partition",
                    f"check partition in {site_checks.file_of(cluster)}",
                )
            ]
        self.found.nodes = min(2, nodes.in_service)
        if not nodes.configured:
            action = (
                f"lower gpus_per_node, cpus_per_task or mem in {site_checks.file_of(cluster)}, or, where Slurm does "
                "not know the GPUs (no GRES), set gpu_request: none"
            )
            asked = f"gpus_per_node {cluster.gpus_per_node}, cpus_per_task {cluster.cpus_per_task}, mem {cluster.mem}"
            detail = f"no node of partition {nodes.partition} has {asked}; its nodes have {' or '.join(nodes.sizes)}"
            return [Finding("nodes", ERROR, detail, action)]
        detail = (
            f"partition {nodes.partition}: {nodes.configured} fit a job with {cluster.gpus_per_node} GPUs, "
            f"{nodes.in_service} in service"
        )
        if nodes.out_of_service:
            detail += f"; out of service: {', '.join(nodes.out_of_service)}"
            action = "jobs wait until enough nodes are back; ask the administrators to resume them, or use other nodes"
            return [Finding("nodes", WARNING, detail, action)]
        return [Finding("nodes", OK, f"{detail} ({' or '.join(nodes.sizes)})")]

    async def _recipe(self, plan: Plan) -> list[Finding]:
        """Test all jobs of a recipe."""
        check = f"recipe {plan.recipe.name}"
        made = await site_checks.jobs(self.client, planned_jobs(plan), self.accepted)
        bad = [finding._replace(check=check) for finding in made if finding.result != OK]
        if bad and self.accepted and not _clusters(plan.recipe):
            # Slurm accepts other jobs: the site is fine, and this recipe, which names no cluster, is not for it.
            return [
                finding._replace(result=WARNING) if finding.result == ERROR else finding
                for finding in _merged(bad)
            ]
        if bad:
            return _merged(bad)
        starts = {finding.detail.partition(":")[0]: _STARTS.search(finding.detail) for finding in made}
        times = {stage: found[1].replace("T", " ") for stage, found in starts.items() if found}
        first, last = min(times.values(), default="unknown"), max(times.values(), default="")
        listed = ", ".join(f"{stage} {start}" for stage, start in times.items())
        expected = f"expected start {first}" if first[:16] == last[:16] else f"expected starts: {listed}"
        return [Finding(check, OK, f"Slurm accepts its jobs ({', '.join(starts)}); {expected}")]

    # ---- files and tokens

    async def _files(self) -> list[Finding]:
        cluster = self.cluster
        # Token and repository of each upload, one request for each.
        hubs = {plan.recipe.hub.repo_id: site_checks.hub(plan, cluster) for plan in self.plans}
        asked = [hub for hub in hubs.values() if hub]
        request = CheckRequest(
            workspace=cluster.workspace,
            readable=site_checks.readable(cluster, self.plans),
            hub=asked[0] if asked else None,
            workspace_setting=f"workspace in {site_checks.file_of(cluster)}",
            min_free_gib=cluster.preflight.min_free_gib if cluster.preflight else 0,
            quota=True,
        )
        found = await site_checks.login_node(self.client, request)
        for hub in asked[1:]:
            found += await site_checks.login_node(
                self.client, request._replace(readable={}, hub=hub, quota=False)
            )
        unique = list(dict.fromkeys(found))
        self.found.later += [finding for finding in unique if finding.check in HUB_CHECKS]
        files = [self._of_recipe(finding) for finding in unique if finding.check not in HUB_CHECKS]
        image = cluster.environment.container
        if image and not image.startswith("/"):
            files.append(Finding("environment.container", OK, f"{image} is pulled by the job"))
        return files + site_checks.environment(cluster)

    def _of_recipe(self, finding: Finding) -> Finding:
        """Return a finding about a path; one in a recipe that is not for this cluster is no error of the cluster."""
        named = re.search(r" in include/recipes/(\S+)\.yaml", finding.detail)
        if named is None or finding.result != ERROR:
            return finding
        bound = any(plan.recipe.name == named[1] and _clusters(plan.recipe) for plan in self.plans)
        return finding._replace(check=f"recipe {named[1]}", result=ERROR if bound else WARNING)

    async def _tokens(self) -> None:
        cluster, later = self.cluster, self.found.later
        jobs = [job for plan in self.plans for job in planned_jobs(plan)]
        uploads = any("upload" in plan.stages for plan in self.plans)
        later += await site_checks.tokens(cluster, jobs, uploads=uploads)
        if not any(finding.check in (*HUB_CHECKS, "hub.conn_id") for finding in later):
            why = "no recipe uploads" if not uploads else self.broken.get("login") or "it is unknown here"
            later += skipped(
                HUB_CHECKS[:1],
                f"{why}; uploads and gated models need a token (hub.conn_id in {site_checks.file_of(cluster)})",
            )
        uses_wandb = {
            plan.recipe.name: plan.recipe.wandb.entity for plan in self.plans if "wandb" in plan.recipe.logger
        }
        if not any(finding.check == "wandb_conn_id" for finding in later):
            later += await asyncio.to_thread(tokens.wandb, cluster, uses_wandb)


def job(cluster_name: str, nodes: int, directory: str) -> SlurmJob:
    """Return the job that describes the environment and the nodes of a cluster.

    Args:
        cluster_name: Name of the cluster file.
        nodes: Number of nodes.
        directory: The job's stage directory.
    """
    cluster = load_cluster(cluster_name)
    checks = (cluster.preflight or Cluster.model_fields["preflight"].default).model_dump()
    checks |= {"gpus_per_node": cluster.gpus_per_node, "device": cluster.device}
    return SlurmJob(
        cluster=cluster_name,
        stage="ppo",  # with the settings of the stage that uses everything
        template="doctor",
        settings={"checks": checks | {"ray": True, "temp_dir": cluster.ray.temp_dir}},
        resources=Resources(nodes=nodes, gpus_per_node=cluster.gpus_per_node, time_limit="20"),
        directory=directory,
    )


def directory(cluster_name: str, run_id: str) -> str:
    """Return the stage directory of the doctor's job.

    Args:
        cluster_name: Name of the cluster file.
        run_id: The run.
    """
    return f"{load_cluster(cluster_name).workspace}/{DAG}/{slug(run_id)}/job"
