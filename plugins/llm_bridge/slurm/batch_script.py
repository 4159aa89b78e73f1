"""Render a job description into the batch script and the files that travel with it."""

from __future__ import annotations

import functools
import json
import shlex
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
import jinja2.bccache

from llm_bridge.exceptions import ConfigError
from llm_bridge.remote import attempt_dir, host_folder, node_archive
from llm_bridge.slurm.spec import ResolvedJob

SUFFIX = ".sh.j2"
# Templates that other templates include or extend, and that of a user's script; not valid as a job's template.
PARTS = ("batch", "environment", "preflight", "ray_job", "ray_step", "script", "sft_step", "step")


@dataclass(frozen=True)
class AttemptFiles:
    """Files to write into an attempt's directory before the job starts, without secrets.

    Attributes:
        texts: Relative path -> text.
        binaries: Relative path -> bytes.
    """

    texts: dict[str, str] = field(default_factory=dict)
    binaries: dict[str, bytes] = field(default_factory=dict)


def render(resolved: ResolvedJob, directory: str) -> str:
    """Return the batch script of a job.

    Args:
        resolved: The job.
        directory: The attempt's directory on the cluster.

    Raises:
        ConfigError: The job names a template that does not exist.
    """
    name = resolved.job.template
    if name is not None and name not in templates():
        raise ConfigError(f"no job template {name!r}: choose from {', '.join(templates())}")
    template = _environment().get_template((name or "script") + SUFFIX)
    return template.render(resolved=resolved, job=resolved.job, cluster=resolved.cluster, directory=directory)


def files(resolved: ResolvedJob, directory: str) -> AttemptFiles:
    """Return the files of an attempt; arguments and exceptions as for :func:`render`."""
    job = resolved.job
    texts = {
        attempt_dir.SCRIPT: render(resolved, directory),
        attempt_dir.SETTINGS: json.dumps(job.settings, indent=2, ensure_ascii=False),
    }
    if job.script is not None:
        return AttemptFiles(texts | {attempt_dir.USER_SCRIPT: job.script})
    texts[attempt_dir.PREFIX_OUTPUT] = _text(attempt_dir.PREFIX_OUTPUT)
    return AttemptFiles(texts, {attempt_dir.NODE_ARCHIVE: node_archive.build()})


def ray_job_wrapper() -> str:
    """Return the script that runs a Ray job's entrypoint and redirects its output to a file of the attempt."""
    return _environment().get_template(f"ray_job{SUFFIX}").render()


def render_environment(**variables: Any) -> str:
    """Return the script that builds an environment.

    Args:
        **variables: Those that the template names.
    """
    return _environment().get_template(f"environment{SUFFIX}").render(**variables)


def templates() -> list[str]:
    """Return the valid values of a job's ``template``."""
    names = (entry.name for entry in resources.files("llm_bridge.remote").joinpath("templates").iterdir())
    found = (name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))
    return sorted(name for name in found if name not in PARTS)


class _BytecodeCache(jinja2.FileSystemBytecodeCache):
    """Cache of compiled templates; a disk that is full, or a folder that was removed, fails no submission."""

    def dump_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        """Write a compiled template, if that is possible."""
        with suppress(OSError):
            super().dump_bytecode(bucket)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    with suppress(OSError):  # each task is a process: a third of its work was to compile the templates
        environment.bytecode_cache = _BytecodeCache(str(host_folder.path()))
    environment.filters["sh"] = shlex.quote
    environment.globals["files"] = attempt_dir
    return environment


def _text(name: str) -> str:
    return resources.files("llm_bridge.remote").joinpath("templates", name).read_text(encoding="utf-8")
