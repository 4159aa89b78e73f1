"""The value types that cluster files, recipes and job descriptions are made of."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Strict(BaseModel):
    """A model that refuses keys it does not know and cannot be changed after it was checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


def _host_and_port(text: str) -> str:
    names = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    if not text.startswith(("http://", "https://")) or names != {"host", "port"}:
        raise ValueError(
            "must begin with http:// or https:// and hold {host} and {port}, such as http://{host}:{port}"
        )
    return text


# Patterns are Rust's (pydantic): '$' is the end of the text, never a line end before it.

# A value of an #SBATCH line. Slurm reads those lines with quoting rules of its own, so nothing that would
# need quoting is let in at all: names, node lists, sizes, times.
SlurmWord = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_.,:@%+=\[\]/&|*-]+$",
        max_length=1000,
        description="letters, digits and _.,:@%+=[]/&|*- (no spaces, quotes or '$')",
    ),
]

# sbatch(1) --time: minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s.
TimeLimit = Annotated[
    str,
    BeforeValidator(_in_quotes),
    Field(
        pattern=r"^([0-9]+|[0-9]+:[0-9]{2}|[0-9]+:[0-9]{2}:[0-9]{2}|[0-9]+-[0-9]+(:[0-9]{2}){0,2})$",
        description="such as 1-12:00:00",
    ),
]

# sbatch(1) --mem: a number of MiB or with a unit; 0 asks for all of a node's memory.
Memory = Annotated[str, Field(pattern=r"^[0-9]+[KMGT]?$", description="such as 64G, or 0 for the whole node")]

Text = Annotated[str, AfterValidator(_printable)]
AbsolutePath = Annotated[str, AfterValidator(_printable), AfterValidator(_absolute)]
UrlTemplate = Annotated[str, AfterValidator(_printable), AfterValidator(_host_and_port)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Count = Annotated[int, Field(ge=1, le=100_000)]
Hours = Annotated[float, Field(gt=0, le=10_000)]
