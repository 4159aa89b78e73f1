"""Check a cluster file end to end, and print what is wrong with what to do."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import logging
import signal
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog
from rich.console import Console

from llm_bridge.config.loader import load_cluster
from llm_bridge.exceptions import ClusterUnavailable, ConfigError, SubmissionUnread
from llm_bridge.pipeline import doctor, doctor_job, findings_table, tokens
from llm_bridge.remote.messages import Finding

MINUTES = 30.0
Result = TypeVar("Result")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("cluster", metavar="CLUSTER", help="name of a file in include/clusters")
    parser.add_argument("--no-job", action="store_true", help="submit no Slurm job")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"maximum wait for the job (default: {MINUTES:g})"
    )
    parser.add_argument(
        "--send-alerts", action="store_true", help="send a test message on each alert channel"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--verbose", action="store_true", help="print the log, too")


def main(arguments: argparse.Namespace) -> int:
    """Run the command; return 1 if a check is an error, 130 after Ctrl-C."""
    if not arguments.verbose:
        quiet()
    try:
        findings = asyncio.run(_until_signal(examine(arguments)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; a job that was submitted is cancelled", file=sys.stderr)
        return 130
    if arguments.json:
        print(findings_table.as_json(arguments.cluster, findings))
    else:
        console = Console(width=None if sys.stdout.isatty() else findings_table.LOG_WIDTH)
        findings_table.print_table(findings, console)
        print(f"\n{arguments.cluster}: {findings_table.summary(findings)}")
    return 1 if findings_table.errors(findings) else 0


def quiet() -> None:
    """Print no log: of what the checks use, for people the table has it all."""
    logging.disable(logging.CRITICAL)
    structlog.configure(processors=[_drop])


def _drop(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    raise structlog.DropEvent


async def _until_signal(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine; SIGTERM and SIGHUP cancel it, as Ctrl-C does."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


async def examine(arguments: argparse.Namespace) -> list[Finding]:
    """Make all checks, and return their findings in order."""
    _say(arguments, "checking the cluster file, the login node and Slurm ...")
    found = await doctor.examine(arguments.cluster)
    findings = list(found.findings)
    if arguments.no_job:
        findings += doctor_job.not_run("of --no-job")
    elif found.why_no_job:
        findings += doctor_job.not_run(found.why_no_job)
    else:
        findings += await _job(arguments, found.nodes)
    findings += found.later
    if arguments.send_alerts:
        findings += await asyncio.to_thread(tokens.alerts, "doctor")
    else:
        findings += doctor.skipped([tokens.ALERTS], "--send-alerts is not given")
    return findings


async def _job(arguments: argparse.Namespace, nodes: int) -> list[Finding]:
    cluster = await asyncio.to_thread(load_cluster, arguments.cluster)
    run_id = f"cli__{getpass.getuser()}__{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
    _say(
        arguments,
        f"running a Slurm job on {nodes} node(s), at most {arguments.minutes:g} min; Ctrl-C cancels it ...",
    )
    try:
        return await doctor_job.run(cluster, nodes, run_id, arguments.minutes * 60)
    except (ConfigError, ClusterUnavailable, SubmissionUnread) as error:
        return [
            doctor.advised(doctor_job.CHECK, error),
            *doctor.skipped(doctor_job.IN_JOB, "the job did not run"),
        ]


def _say(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.json:
        print(text, file=sys.stderr, flush=True)
