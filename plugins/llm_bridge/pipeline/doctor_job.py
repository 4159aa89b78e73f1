"""Read the result of the doctor's job, and run that job without a task of Airflow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from llm_bridge.config.cluster import Cluster
from llm_bridge.diagnosis.explain_slurm import explain_slurm
from llm_bridge.exceptions import ClusterUnavailable
from llm_bridge.pipeline import doctor, pins, site_checks
from llm_bridge.pipeline.doctor import advised
from llm_bridge.remote.messages import ERROR, OK, SKIPPED, WARNING, Finding
from llm_bridge.slurm import environment_build
from llm_bridge.slurm.events import SlurmJobEvent
from llm_bridge.slurm.submission import SlurmSubmission
from llm_bridge.task_state import TaskState
from llm_bridge.triggers.slurm import SlurmJobTrigger

CHECK = "job"
# Checks that only the job can make.
IN_JOB = ("nodes of the job", "shared file system", "all-reduce", "packages")


def not_run(because: str) -> list[Finding]:
    """Return the findings where no job runs."""
    return doctor.skipped((CHECK, *IN_JOB), because)


def failed(diagnosis: Mapping[str, Any]) -> list[Finding]:
    """Return the findings for a job that failed.

    Args:
        diagnosis: Its diagnosis, as :meth:`~llm_bridge.diagnosis.report.Diagnosis.as_dict`.
    """
    node = f" (on {diagnosis['node']})" if diagnosis.get("node") else ""
    detail = f"{diagnosis['title']}: {diagnosis['evidence']}{node}"
    finding = Finding(CHECK, ERROR, detail, diagnosis.get("advice") or "")
    return [finding, *doctor.skipped(IN_JOB, "the job failed")]


def succeeded(job_id: str, found: Any, cluster: Cluster) -> list[Finding]:
    """Return the findings in the result of the job.

    Args:
        job_id: The job.
        found: Content of its result file.
        cluster: Its cluster.
    """
    if not isinstance(found, dict):
        detail = f"Slurm job {job_id} ended without a result"
        return [Finding(CHECK, ERROR, detail, "read its log"), *doctor.skipped(IN_JOB, "there is no result")]
    nodes, problems = list(found["nodes"]), dict(found["problems"])
    findings = [Finding(CHECK, OK, f"Slurm job {job_id} ran on {', '.join(nodes)}")]
    for node, texts in sorted(problems.items()):
        findings += [
            advised("nodes of the job", f"{node}: {text}", "see preflight in the cluster file")
            for text in texts
        ]
    for node, texts in sorted(found["warnings"].items()):
        findings += [Finding("nodes of the job", WARNING, f"{node}: {text}") for text in texts]
    if not problems:
        findings.append(
            Finding("nodes of the job", OK, "GPUs, interface, ports, clock and disk are in order")
        )
    findings.append(_shared(nodes, list(found["reported"]), cluster))
    findings.append(_all_reduce(found, nodes, cluster))
    return findings + _packages(found, cluster)


def _shared(nodes: list[str], reported: list[str], cluster: Cluster) -> Finding:
    missing = sorted(set(nodes) - set(reported))
    if missing:
        detail = f"{nodes[0]} does not see what {', '.join(missing)} wrote to {cluster.workspace}"
        action = f"set workspace in {site_checks.file_of(cluster)} to a file system that all nodes share"
        return Finding("shared file system", ERROR, detail, action)
    seen = "the node sees the workspace" if len(nodes) == 1 else "each node sees what the others write"
    return Finding("shared file system", OK, seen)


def _all_reduce(found: Mapping[str, Any], nodes: list[str], cluster: Cluster) -> Finding:
    measured = found["all_reduce"]
    if measured:
        gpus = f" x {cluster.gpus_per_node} GPUs" if cluster.device == "cuda" else ""
        rate = f"{measured['backend']} over {len(nodes)} node(s){gpus}: {measured['rate']:.2f} GiB/s"
        return Finding("all-reduce", OK, rate)
    if found["problems"]:
        because = "a node of the job has a problem"
    elif not found["versions"].get("torch"):
        because = "torch is not installed"
    elif cluster.preflight and not cluster.preflight.all_reduce_seconds:
        because = "preflight.all_reduce_seconds is 0"
    else:
        because = "there is one process only"
    return Finding("all-reduce", SKIPPED, f"because {because}")


def _packages(found: Mapping[str, Any], cluster: Cluster) -> list[Finding]:
    """Compare the packages of the environment with the tested versions."""
    versions, errors = found["versions"], found["import_errors"]
    engine = pins.engine_of(versions, cluster.device)
    file = environment_build.PINS[engine]
    where = (
        f"the environment of {site_checks.file_of(cluster)} (Python {found['python']}, {found['executable']})"
    )
    install = (
        f"install {file} there (`python -m llm_bridge install-environment {cluster.name} --engine {engine}`), or "
        "correct environment in the cluster file"
    )
    findings = []
    for name, pin in pins.versions(engine).items():
        version = versions.get(name)
        plain = (version or "").partition("+")[0]  # torch 2.13.0+cpu
        if version is None:
            needed = name in ("torch", "verl", "ray", "transformers")
            detail = f"{name} is not installed in {where}"
            findings.append(Finding(f"package {name}", ERROR if needed else WARNING, detail, install))
        elif errors.get(name):
            detail = f"{name} {version} cannot be imported in {where}: {errors[name]}"
            findings.append(Finding(f"package {name}", ERROR, detail, install))
        elif plain != pin:
            detail = f"{name} {version}, and llm-bridge was tested with {pin} ({file})"
            findings.append(
                Finding(f"package {name}", WARNING, detail, f"install {name}=={pin}, or try a small run")
            )
        else:
            findings.append(Finding(f"package {name}", OK, f"{version}, as in {file}"))
    return findings


class _Memory(dict[str, Any]):
    """State store of a task that has one try only."""

    def set(self, key: str, value: Any) -> None:
        """Store a value."""
        self[key] = value


async def run(cluster: Cluster, nodes: int, run_id: str, wait_seconds: float) -> list[Finding]:
    """Submit the job, wait for its end, and return its findings. A cancellation cancels the job, too.

    The job gets its files and its name as one of Airflow's tasks does, so it is submitted once.

    Args:
        cluster: The cluster.
        nodes: Number of nodes.
        run_id: Identifies the run in the job's name and directory.
        wait_seconds: Maximum wait, in the queue and for the job; it is cancelled then.
    """
    job = doctor.job(cluster.name, nodes, doctor.directory(cluster.name, run_id))
    task = TaskState(
        dag_id=doctor.DAG,
        run_id=run_id,
        task_id="job",
        map_index=-1,
        try_number=1,
        max_tries=0,
        clear_number=0,
        store=_Memory(),
    )
    submission = SlurmSubmission(job, task, {})
    try:
        found = await submission.submit()
        attempt = found.attempt
        assert attempt.job_id
        trigger = SlurmJobTrigger(
            cluster.name, attempt.job_id, attempt.directory, deadline=time.time() + wait_seconds
        )
        event = SlurmJobEvent.from_json(await trigger.outcome())
    except BaseException:
        # Also on Ctrl-C, and where it is unknown if sbatch succeeded. Where the cluster does not answer, the job's time
        # limit ends it.
        with suppress(ClusterUnavailable):
            await asyncio.shield(submission.cancel())
        raise
    if event.succeeded:
        return succeeded(event.job_id, event.result, cluster)
    report = await explain_slurm(task, event, None, retry_delay=timedelta())
    return failed(report.diagnosis.as_dict())
