"""From a job description to the batch script and the files that travel with it."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import jinja2

from llm_bridge.config.errors import ConfigError
from llm_bridge.config.load import include_dir

if TYPE_CHECKING:
    from llm_bridge.config.cluster import Cluster
    from llm_bridge.slurm.job import SlurmJob


def render(job: SlurmJob, cluster: Cluster, directory: str) -> str:
    """The batch script of ``job``.

    :param directory: the attempt's directory on the cluster.
    :raises ConfigError: the job names a template that does not exist.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(include_dir() / "jobs"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["sh"] = shlex.quote
    name = f"{job.template or 'script'}.sh.j2"
    try:
        template = environment.get_template(name)
    except jinja2.TemplateNotFound:
        known = ", ".join(
            sorted(f.name.removesuffix(".sh.j2") for f in (include_dir() / "jobs").glob("*.sh.j2"))
        )
        raise ConfigError(f"there is no job template include/jobs/{name}: choose from {known}") from None
    return template.render(job=job, cluster=cluster, directory=directory)


def files(job: SlurmJob, cluster: Cluster, directory: str) -> dict[str, str]:
    """What the attempt's directory holds before the job starts: path -> text. Secrets are not among them."""
    shipped = launchers()
    if job.script is not None:
        shipped["user_script.sh"] = job.script
    return {
        "script.sh": render(job, cluster, directory),
        "settings.json": json.dumps(job.settings, indent=2, ensure_ascii=False),
        **shipped,
    }


def launchers() -> dict[str, str]:
    """The programs of ``include/jobs`` as they are now: a job runs the code that it was submitted with."""
    folder = include_dir() / "jobs"
    found = (f for f in sorted(folder.rglob("*")) if f.suffix in (".py", ".sh"))
    return {f"jobs/{f.relative_to(folder)}": f.read_text(encoding="utf-8") for f in found}
