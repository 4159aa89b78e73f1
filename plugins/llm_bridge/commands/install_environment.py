"""Build the environment that a cluster file names (venv, or apptainer image) from llm-bridge's pins, as a Slurm job.

The same pins again do nothing. An environment of other pins is built beside the old one, which running jobs keep.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import secrets
import sys
import time
from pathlib import Path

from llm_bridge.config.loader import load_cluster
from llm_bridge.exceptions import ClusterUnavailable, ConfigError, SubmissionUnread
from llm_bridge.remote import attempt_dir, messages
from llm_bridge.remote.attempt_dir import attempt_name, attempt_number
from llm_bridge.remote.transport import CommandFailed, Completed
from llm_bridge.slurm.batch_script import AttemptFiles
from llm_bridge.slurm.cancellation import cancel_and_wait
from llm_bridge.slurm.client import SlurmClient, open_client
from llm_bridge.slurm.environment_build import OWNER, PINS, PYTHON, EnvironmentBuild, pins
from llm_bridge.slurm.poller import ClusterPoller
from llm_bridge.slurm.status import JobInfo, Phase

# Exit code of a program that Ctrl-C ends.
INTERRUPTED = 130
# Limit of a build on the login node; flash-attn compiles for hours.
LOGIN_SECONDS = 12 * 3600.0
POLL_SECONDS = 1.0
CANCEL_SECONDS = 60.0


class BuildFailed(Exception):
    """The build has ended without an environment."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "cluster", help="name of a file in include/clusters; its environment.venv is the place"
    )
    parser.add_argument(
        "--engine", choices=PINS, help="pins of a rollout engine; default: vllm, or cpu with `device: cpu`"
    )
    parser.add_argument("--python", default=PYTHON, help="version of Python (default: %(default)s)")
    parser.add_argument(
        "--requirements",
        type=Path,
        metavar="FILE",
        help="a requirements file of your own in place of the pins",
    )
    parser.add_argument(
        "--no-build-isolation",
        action="append",
        default=[],
        metavar="REQUIREMENT",
        help="install this after the others, without build isolation: flash-attn==2.8.3; may be repeated",
    )
    parser.add_argument(
        "--find-links", metavar="DIR", help="folder of wheels on the cluster, in place of the package index"
    )
    parser.add_argument(
        "--on-login-node",
        action="store_true",
        help="build on the login node, where compute nodes have no network",
    )


def main(args: argparse.Namespace) -> int:
    """Build the environment, and follow the build; Ctrl-C cancels it.

    Args:
        args: As of :func:`add_arguments`.

    Returns:
        0 for a complete environment, 1 for a failure, 130 after Ctrl-C.
    """
    try:
        return asyncio.run(_build(_requested(args), on_login_node=args.on_login_node))
    except ConfigError as error:
        lines = error.lines
    except ClusterUnavailable as error:
        lines = [f"{error}. Run the command again later: it finds a build that was submitted"]
    except (BuildFailed, CommandFailed, SubmissionUnread) as error:
        lines = [str(error)]
    except KeyboardInterrupt:  # before a build was followed
        print("interrupted; the same command again finds a build that was submitted", file=sys.stderr)
        return INTERRUPTED
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return 1


def _requested(args: argparse.Namespace) -> EnvironmentBuild:
    cluster = load_cluster(args.cluster)
    if args.requirements and args.engine:
        raise ConfigError("--engine selects llm-bridge's own pins: give either --engine or --requirements")
    if args.requirements:
        try:
            text = args.requirements.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--requirements: {args.requirements} cannot be read: {error}") from None
    else:
        text = pins(args.engine or ("cpu" if cluster.device == "cpu" else "vllm"))
    return EnvironmentBuild(cluster, text, args.python, tuple(args.no_build_isolation), args.find_links)


async def _build(build: EnvironmentBuild, *, on_login_node: bool) -> int:
    _say(f"{build.key}: {build.target}, hash {build.hash}, {len(build.lines)} requirement(s)")
    async with open_client(build.cluster) as client:
        if await build.is_current(client):
            _say(f"nothing to do: {build.target} is environment {build.hash} already")
            return 0
        await _check(build, client)
        await build.send_requirements(client)
        if on_login_node:
            code = await _on_login_node(build, client)
        else:
            code = await _as_job(build, client)
        if code:
            return code
        if not await build.is_current(client):
            raise BuildFailed(f"the build has ended, but {build.target} is not environment {build.hash}")
    _say(f"built: {build.target} is environment {build.hash}")
    return 0


async def _check(build: EnvironmentBuild, client: SlurmClient) -> None:
    """Check on the login node what would make the build fail.

    Raises:
        ConfigError: The place is taken, or there is no such folder of wheels.
    """
    run = client.transport.run
    exists = (await run(["test", "-e", build.target])).code == 0
    if exists and (await run(["test", "-L", build.target])).code:
        raise ConfigError(
            f"{build.target} exists and was not made by install-environment: move it to another place, or set "
            f"{build.key} to another path"
        )
    if build.find_links and (await run(["test", "-d", build.find_links])).code:
        raise ConfigError(f"--find-links: there is no folder {build.find_links} on the login node")


# ---- as a Slurm job


async def _as_job(build: EnvironmentBuild, client: SlurmClient) -> int:
    job_id, directory, is_own = await _submit(build, client)
    try:
        cause = await _follow(build, client, job_id, directory)
    except asyncio.CancelledError:
        if not is_own:
            _say(f"Slurm job {job_id} of another call builds on")
            return INTERRUPTED
        _say(f"cancelling Slurm job {job_id}")
        left = await cancel_and_wait(build.cluster.name, [job_id], CANCEL_SECONDS)
        if any(not info.is_completing for info in left.values()):
            _say(
                f"Slurm job {job_id} has not ended yet: `scancel {job_id}` on the login node cancels it again"
            )
        else:
            _say(f"cancelled Slurm job {job_id}; nothing was changed")
        return INTERRUPTED
    if cause:
        raise BuildFailed(f"{cause}. Its log is {directory}/{attempt_dir.OUTPUT} on the cluster")
    return 0


async def _submit(build: EnvironmentBuild, client: SlurmClient) -> tuple[str, str, bool]:
    """Submit the job once, or find the one that builds the same; return its id, directory, and True if it is new.

    Raises:
        ConfigError: A job builds another environment in the same place.
    """
    known = await client.list_attempts(build.directory)
    states = await client.find(
        [job.job_id for job in known], directories={job.job_id: job.directory for job in known}
    )
    for job in known:
        info = states.get(job.job_id)
        if info and info.phase is not Phase.ENDED:
            await _refuse_other(build, client, job.job_id, job.directory)
            _say(f"following Slurm job {job.job_id}, which builds it already")
            return job.job_id, job.directory, False
    resolved = build.job()
    number = max((attempt_number(job.directory) for job in known), default=0) + 1
    while True:
        directory = f"{build.directory}/{attempt_name(number)}"
        # Two calls at once choose the same number, and get the same job.
        answer = await client.submit(resolved, directory, build.job_name(number), build.owner, {})
        if answer.status != messages.CLOSED:
            break
        number += 1
    if not answer.job_id:
        raise BuildFailed(f"no job was submitted: {answer.status} {answer.message}")
    is_own = answer.status == messages.SUBMITTED
    if not is_own:
        await _refuse_other(build, client, answer.job_id, directory)
    _say(f"{answer.status} Slurm job {answer.job_id}; log in {directory}/{attempt_dir.OUTPUT}")
    return answer.job_id, directory, is_own


async def _refuse_other(build: EnvironmentBuild, client: SlurmClient, job_id: str, directory: str) -> None:
    settings = await client.read_json(f"{directory}/{attempt_dir.SETTINGS}")
    other = settings.get("hash") if isinstance(settings, dict) else None
    if other != build.hash:
        raise ConfigError(
            f"Slurm job {job_id} builds environment {other} for {build.target}, not {build.hash}: wait for its end, or "
            f"cancel it (`scancel {job_id}` on the login node)"
        )


async def _follow(build: EnvironmentBuild, client: SlurmClient, job_id: str, directory: str) -> str:
    """Print state and output of the job until it has ended.

    Returns:
        Why it failed; empty for success.
    """
    printer, info, outcome = _Printer(), None, None
    async for update in ClusterPoller(build.cluster).follow(job_id, directory):
        if update.notice:
            _say(update.notice)
        if update.info and _state(update.info) != (_state(info) if info else ""):
            info = update.info
            _say(f"Slurm job {job_id} {_state(info)}")
        printer.print(update.log)
        outcome = update.files.get(attempt_dir.OUTCOME) or outcome
    printer.end()
    if (outcome or {}).get("exit_code") == 0 or (info and info.meaning.good and not outcome):
        return ""
    cause = f"Slurm job {job_id} {_state(info)}" if info else f"Slurm job {job_id} can no longer be followed"
    return printer.error or cause


def _state(info: JobInfo) -> str:
    reason = f" ({info.reason})" if info.reason and info.phase is not Phase.RUNNING else ""
    return f"{info.meaning.meaning}{reason}{f' on {info.nodes}' if info.nodes else ''}"


# ---- on the login node


async def _on_login_node(build: EnvironmentBuild, client: SlurmClient) -> int:
    directory = f"{build.directory}/login-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    await client.put_files(directory, AttemptFiles({attempt_dir.USER_SCRIPT: build.script(directory)}))
    log = f"{directory}/{attempt_dir.OUTPUT}"
    _say(f"building on the login node; log in {log}")
    # A session of its own: Ctrl-C ends all of its processes.
    argv = ["setsid", "--wait", "bash", f"{directory}/{attempt_dir.USER_SCRIPT}"]
    running = asyncio.create_task(client.transport.run(argv, timeout=LOGIN_SECONDS))
    printer, offset = _Printer(), 0
    try:
        while True:
            ended = running.done()
            new = await client.transport.run(["tail", "-c", f"+{offset + 1}", "--", log])
            if new.code == 0:
                offset += len(new.stdout.encode())
                printer.print(new.stdout.encode())
            if ended:
                break
            await asyncio.wait([running], timeout=POLL_SECONDS)
        printer.end()
        done: Completed = running.result()
    except asyncio.CancelledError:
        pid = (
            await client.transport.run(["cat", "--", f"{directory}/{attempt_dir.BUILD_PID}"])
        ).stdout.strip()
        if pid.isdigit():
            await client.transport.run(["kill", "-TERM", "--", f"-{pid}"])
        running.cancel()
        await asyncio.wait([running])
        _say("ended the build on the login node; nothing was changed")
        return INTERRUPTED
    if done.code:
        cause = printer.error or done.stderr.strip() or f"exit code {done.code}"
        raise BuildFailed(f"{cause}. Its log is {log} on the login node")
    return 0


# ---- the terminal


class _Printer:
    """Prints a log as it grows, in whole lines, and keeps the last error in it.

    Attributes:
        error: The last line that names an error of the build; empty for none.
    """

    def __init__(self) -> None:
        self.error = ""
        self._rest = b""

    def print(self, data: bytes) -> None:
        """Print the lines that ``data`` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip("\r")
            if found := re.match(r"\[llm-bridge\] error: (.*)", text):
                self.error = found[1]
            print(text, flush=True)

    def end(self) -> None:
        """Print a last line without a line end."""
        if self._rest:
            self.print(b"\n")


def _say(text: str) -> None:
    print(f"{OWNER}: {text}", flush=True)
