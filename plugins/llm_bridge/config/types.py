"""Value types of cluster files, recipes and job specifications."""

from __future__ import annotations

import re
from string import Formatter
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)


class FrozenModel(BaseModel):
    """Base model that rejects unknown keys and is immutable after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic reads true as 1, and YAML reads on and yes as true.
        if isinstance(value, bool):
            types = _types_in(cls.model_fields[str(info.field_name)].annotation)
            if types & {int, float} and bool not in types:
                raise ValueError("must be a number, not true or false")
        return value


def _types_in(annotation: Any) -> set[Any]:
    arguments = [inner for argument in get_args(annotation) for inner in _types_in(argument)]
    return {annotation, *arguments} if isinstance(annotation, type) else set(arguments)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be one line of printable text")
    return text


def _in_quotes(value: Any) -> Any:
    if isinstance(value, int):
        raise ValueError('write it in quotes, such as "2:00:00": YAML reads 2:00:00 without them as 7200')
    return value


def _absolute(text: str) -> str:
    if not text.startswith("/") or ".." in text.split("/"):
        raise ValueError("must be an absolute path without '..'; '~' and variables are not expanded")
    return text.rstrip("/") or "/"


CRON_PRESETS = ("@hourly", "@daily", "@weekly", "@monthly", "@quarterly", "@yearly")

# The rule of huggingface_hub.utils.validate_repo_id, which is not imported where DAG files are parsed; an owner is
# required. No valid character has a meaning in a shell, in hydra or in a URL.
_HUB_NAME = r"\b[\w.-]{1,96}\b"
_HUB_ID = re.compile(f"{_HUB_NAME}/{_HUB_NAME}", re.ASCII)
_PATH = re.compile(r"(/[A-Za-z0-9_.+=@-]+)+")


def hub_id(text: str) -> str:
    """Return ``text`` if it is the id of a repository on the Hub, ``OWNER/NAME``.

    Raises:
        ValueError: The Hub's rules for names do not allow it.
    """
    if not _HUB_ID.fullmatch(text) or "--" in text or ".." in text or text.endswith(".git"):
        raise ValueError(
            "must be OWNER/NAME, such as my-org/my-model: letters, digits, '-', '_' and '.', at most 96 characters "
            "each, '-' and '.' neither first nor last, no '--', no '..', and no '.git' at the end"
        )
    return text


def hub_id_or_path(text: str) -> str:
    """Return ``text`` if it is the id of a repository on the Hub, or an absolute path without special characters.

    Raises:
        ValueError: It is neither.
    """
    if not text.startswith("/"):
        return hub_id(text)
    if not _PATH.fullmatch(text) or {".", ".."} & set(text.split("/")):
        raise ValueError(
            "must be an absolute path of letters, digits and _.+=@- without '.' and '..', or OWNER/NAME on the Hub"
        )
    return text


def _cron(text: str) -> str:
    if text in CRON_PRESETS:
        return text
    try:
        from croniter import (  # Airflow's own; only a recipe with a schedule needs it
            CroniterBadDateError,
            croniter,
        )
    except ImportError:  # make gpu-trial, in an environment of jobs
        return text
    if len(text.split()) != 5 or not croniter.is_valid(text):
        raise ValueError(
            f'must be a cron line of five fields, such as "0 22 * * *", or one of {", ".join(CRON_PRESETS)}'
        )
    try:
        croniter(text).get_next()
    except CroniterBadDateError:
        # Airflow would show the DAG, and never run it.
        raise ValueError(
            "must be a cron line with dates that exist: there is no such day of the month"
        ) from None
    return text


def _host_and_port(text: str) -> str:
    names = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    if not text.startswith(("http://", "https://")) or names != {"host", "port"}:
        raise ValueError(
            "must start with http:// or https:// and contain {host} and {port}, such as http://{host}:{port}"
        )
    return text


def matching(pattern: str, form: str) -> AfterValidator:
    """Return a validator of texts by a regular expression, with an error message that states the valid form.

    Args:
        pattern: Regular expression for the whole text.
        form: Description of the valid form, with an example.
    """
    compiled = re.compile(pattern, re.ASCII)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(f"must be {form}")
        return text

    return AfterValidator(check)


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


# A value of an #SBATCH line. Slurm reads those lines with quoting rules of its own, so nothing that would need quoting
# is accepted: names, node lists, sizes, times.
SlurmWord = Annotated[
    str,
    matching(
        r"[A-Za-z0-9_.,:@%+=\[\]/&|*-]+",
        "one word of letters, digits and _.,:@%+=[]/&|*- without spaces, quotes or '$', such as gpu[94-95]",
    ),
    Field(max_length=1000),
]
# The same with the operators of --constraint and --prefer: (a100&nvlink)|h100, [rack1*2&rack2*4].
OptionValue = Annotated[
    str,
    BeforeValidator(_number_as_text),
    matching(
        r"[A-Za-z0-9_.,:;@%+=~^!?()\[\]/&|*-]+",
        "one word of letters, digits and _.,:;@%+=~^!?()[]/&|*- without spaces, quotes or '$', such as "
        "(a100&nvlink)|h100",
    ),
    Field(max_length=1000),
]
OptionName = Annotated[
    str,
    matching(r"[a-z][a-z-]*", "the long name of an sbatch option without dashes, such as licenses"),
]
GpuType = Annotated[
    str, matching(r"[A-Za-z0-9_.-]+", "the type in Slurm's Gres, such as a100 of gpu:a100:8 (`sinfo -o %G`)")
]

# sbatch(1) --time: minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s.
TimeLimit = Annotated[
    str,
    BeforeValidator(_in_quotes),
    matching(
        r"[0-9]+|[0-9]+:[0-9]{2}|[0-9]+:[0-9]{2}:[0-9]{2}|[0-9]+-[0-9]+(:[0-9]{2}){0,2}",
        'minutes, h:m:s, or d-h:m:s in quotes, such as "90", "2:00:00" or "1-12:00:00"',
    ),
]

# sbatch(1) --mem: a number of MiB or with a unit; 0 asks for all of a node's memory.
Memory = Annotated[
    str,
    BeforeValidator(_number_as_text),
    matching(
        r"[0-9]+[KMGT]?", "a number with one of the units K, M, G, T, such as 64G, or 0 for the whole node"
    ),
]

Text = Annotated[str, AfterValidator(_printable)]
AbsolutePath = Annotated[str, AfterValidator(_printable), AfterValidator(_absolute)]
UrlTemplate = Annotated[str, AfterValidator(_printable), AfterValidator(_host_and_port)]
# A repository on the Hub, and the same or an absolute path on the cluster.
HubId = Annotated[str, AfterValidator(hub_id)]
HubIdOrPath = Annotated[str, AfterValidator(hub_id_or_path)]
CronLine = Annotated[str, AfterValidator(_cron)]
VariableName = Annotated[
    str, matching(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable, such as NCCL_DEBUG")
]
Count = Annotated[int, Field(ge=1, le=100_000)]
Hours = Annotated[float, Field(gt=0, le=10_000)]


class JobSize(FrozenModel):
    """Slurm resources of a stage; empty means the recipe's or the cluster's value.

    Attributes:
        nodes: Number of nodes.
        gpus_per_node: GPUs per node.
        cpus_per_task: CPUs per node.
        mem: Memory per node.
        time_limit: Time limit in a form of sbatch(1).
    """

    nodes: Count | None = None
    gpus_per_node: Count | None = None
    cpus_per_task: Count | None = None
    mem: Memory | None = None
    time_limit: TimeLimit | None = None
