"""Training data of a recipe: sources, shape of their rows, held-out part and checks; ``docs/data.md`` has examples."""

from __future__ import annotations

import hashlib
import json
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from llm_bridge.config.types import FrozenModel, SlurmWord, Text, hub_id, matching
from llm_bridge.naming import slug

# Names that others have for rows of the format chat.
_CHAT = ("sharegpt", "messages", "conversations", "openai", "chatml")


def _format(value: Any) -> Any:
    if isinstance(value, str) and value.lower() in _CHAT:
        raise ValueError("write chat: it reads messages as well as ShareGPT's conversations")
    return value


Format = Annotated[Literal["gsm8k", "chat", "columns", "verl"], BeforeValidator(_format)]
Check = Literal["drop", "keep", "refuse"]

GSM8K = "openai/gsm8k"
# Keys of a source in short form.
_SHORT = ("source", "config", "revision", "split", "test_split", "max_rows")
# remote/node/data/files.py reads these.
SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv")
# Suffixes of files that are likely to be data, but are not read.
_UNREADABLE = (*SUFFIXES, ".txt", ".tsv", ".arrow", ".gz", ".zst", ".xz", ".bz2", ".zip")


def _source(text: str) -> str:
    if not text.startswith("/"):
        if text.endswith(SUFFIXES):
            raise ValueError(
                "is a relative path: write the absolute path on the cluster, such as /data/chat.jsonl"
            )
        return hub_id(text)
    if {".", ".."} & set(text.split("/")):
        raise ValueError("must be an absolute path on the cluster without '.' and '..'")
    if text.lower().endswith(_UNREADABLE) and not text.endswith(SUFFIXES):
        raise ValueError(
            f"files must be one of {', '.join(SUFFIXES)}, by their suffix in lower case and not compressed"
        )
    if _has_wildcard(text) and not text.endswith(SUFFIXES):
        raise ValueError(
            f"a pattern of paths must end in one of {', '.join(SUFFIXES)}, such as /data/chat-*.jsonl"
        )
    return text


def _has_wildcard(path: str) -> bool:
    return any(character in path for character in "*?[")


def template_fields(template: str) -> list[str]:
    """Return the names of the columns that a template takes, in order.

    Args:
        template: A text with fields such as ``{question}``.

    Raises:
        ValueError: It is no such text.
    """
    names = []
    for _, name, form, conversion in Formatter().parse(template):
        if name is None:
            continue
        if (
            form
            or conversion
            or not name
            or not name.replace("_", "a").replace("-", "a").isalnum()
            or name.isdigit()
        ):
            raise ValueError(f"the field {{{name}}} must be the name of a column, such as {{question}}")
        names.append(name)
    return names


def _template(text: str) -> str:
    try:
        names = template_fields(text)
    except ValueError as error:
        raise ValueError(f"{error}; for a brace in the text write '{{{{' or '}}}}'") from None
    if not names:
        raise ValueError("has no field: name the columns that it takes in braces, such as {question}")
    return text


SourcePath = Annotated[
    str,
    matching(
        r"/[A-Za-z0-9_.+=@/*?\[\]-]+|[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+",
        "OWNER/NAME on the Hub, or an absolute path on the cluster of letters, digits and _.+=@-, in which * ? and "
        "[a-z] match any file",
    ),
    AfterValidator(_source),
]
SplitName = Annotated[str, matching(r"[A-Za-z0-9_.-]+", "the name of a split, such as train")]
Template = Annotated[str, AfterValidator(_template)]
Rows = Annotated[int, Field(ge=1)]


class Source(FrozenModel):
    """One source of rows: a data set on the Hub, or a directory, a file or several files on the cluster.

    Attributes:
        source: Data set on the Hub (``OWNER/NAME``), or an absolute path or pattern of paths on the cluster.
        split: Split to train on.
        max_rows: Number of rows to use, drawn deterministically; all when empty.
    """

    source: SourcePath
    config: SlurmWord | None = Field(default=None, description="configuration of a data set that has several")
    revision: SlurmWord | None = Field(
        default=None, description="branch, tag or commit on the Hub; main when empty"
    )
    split: SplitName = "train"
    test_split: SplitName | None = Field(default=None, description="'test' if there is one, when empty")
    weight: float | None = Field(
        default=None, gt=0, le=1000, description="2: every row twice; 0.5: every other row"
    )
    max_rows: Rows | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Source:
        if self.weight is not None and self.max_rows is not None:
            raise ValueError("weight and max_rows both set the number of rows: remove one")
        if self.source.startswith("/") and self.revision:
            raise ValueError("revision is for data sets on the Hub: remove it")
        if self.source.startswith("/") and self.source.endswith(SUFFIXES):
            for key, default in (("config", None), ("split", "train"), ("test_split", None)):
                if getattr(self, key) != default:
                    raise ValueError(
                        f"{key} is for data sets on the Hub and for directories that are laid out like one: remove it"
                    )
        if self.split == self.test_split:
            raise ValueError(f"split and test_split are both {self.split!r}")
        return self

    @property
    def directory_or_file(self) -> str:
        """The source; of a pattern of paths, the directory above the first part that is a pattern."""
        parts = self.source.split("/")
        fixed = next((n for n, part in enumerate(parts) if _has_wildcard(part)), len(parts))
        return "/".join(parts[:fixed]) or "/"


class Columns(FrozenModel):
    """Names of the columns that rows are made from.

    Attributes:
        prompt: Question, of formats columns and verl.
        response: Answer to learn from, of format columns.
    """

    prompt: Text | None = None
    response: Text | None = None
    truth: Text | None = Field(default=None, description="reference answer, for the reward")
    messages: Text | None = Field(
        default=None, description="of format chat; 'messages' or 'conversations' when empty"
    )


class Data(FrozenModel):
    """Data of one training, or of both: one source in short form, or several under ``sources``.

    Attributes:
        source: Short form of one source; the keys down to ``max_rows`` are those of an entry of ``sources``.
        config: See ``sources``.
        revision: See ``sources``.
        split: See ``sources``.
        test_split: See ``sources``.
        max_rows: See ``sources``.
        sources: Several sources, mixed deterministically.
        format: Shape of the rows.
        columns: Names of the columns.
        system: System message put before each prompt.
        template: Text of a prompt with fields, such as ``{question}``, in place of one column.
        test_fraction: Share of the rows that is held out where there is no test split.
        duplicates: Treatment of rows that occur twice.
        too_long: Treatment of rows longer than the training's limit.
        leaked: Treatment of training rows whose prompt is in the test split, too.
    """

    source: SourcePath | None = None
    config: SlurmWord | None = None
    revision: SlurmWord | None = None
    split: SplitName | None = None
    test_split: SplitName | None = None
    max_rows: Rows | None = None
    sources: list[Source] | None = Field(default=None, min_length=1, max_length=100)
    format: Format = "gsm8k"
    columns: Columns = Columns()
    system: str | None = None
    template: Template | None = None
    data_source: Text | None = Field(
        default=None, description="verl's name of the data, by which it selects a reward"
    )
    test_fraction: float = Field(default=0.02, gt=0, lt=1)
    duplicates: Check = "keep"
    too_long: Check = "keep"
    leaked: Check = "keep"

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        short = " and ".join(self._short())
        if self.sources and short:
            raise ValueError(f"sources and {short} both name data: move {short} into sources")
        sources = self.all_sources()
        for number, source in enumerate(sources):
            if source in sources[:number]:
                raise ValueError(
                    f"sources.{number} is the same as sources.{sources.index(source)}: remove it, or set weight: 2 to "
                    "take every row twice"
                )
        if self.format == "columns":
            self._check_columns()
            return self
        if self.template:
            raise ValueError(f"template is for format columns, not for {self.format}: remove it")
        if self.system is not None and self.format != "chat":
            raise ValueError(f"system is for the formats columns and chat, not for {self.format}: remove it")
        allowed = {"messages", "truth"} if self.format == "chat" else set()
        for key in ("prompt", "response", "truth", "messages"):
            if getattr(self.columns, key) and key not in allowed:
                raise ValueError(
                    f"columns.{key} is not for format {self.format}: remove it, or set another format"
                )
        return self

    def _check_columns(self) -> None:
        if self.columns.messages:
            raise ValueError("columns.messages is for format chat: remove it, or set format: chat")
        if bool(self.columns.prompt) == bool(self.template):
            raise ValueError(
                "format columns needs either columns.prompt, the column that is the prompt, or template, a text that "
                "is made of columns, such as 'Question: {question}'"
                + ("" if self.template is None else "; not both")
            )

    @property
    def has_responses(self) -> bool:
        """True if a row has an answer to learn from, which SFT needs."""
        return self.format != "columns" or self.columns.response is not None

    def all_sources(self) -> list[Source]:
        """Return the sources; one in short form is a list of one."""
        if self.sources:
            return self.sources
        given = {"source": GSM8K, **self._short()}
        if self.format == "gsm8k" and not given["source"].endswith(SUFFIXES):
            given.setdefault("config", "main")
        return [Source(**given)]

    def _short(self) -> dict[str, Any]:
        """Return the keys that are set of a source in short form."""
        return {key: value for key in _SHORT if (value := getattr(self, key)) is not None}

    def specification(self) -> dict[str, Any]:
        """Return everything that decides the prepared rows, as the program on the node reads it."""
        found = self.model_dump(exclude={*_SHORT, "sources"})
        found["sources"] = [source.model_dump() for source in self.all_sources()]
        return found

    def folder(self, limits: dict[str, Any] | None = None) -> str:
        """Return the name of the folder of the prepared rows: of the first source, and of a hash of all settings.

        A data set in GSM8K's shape in short form keeps the name that it had before there were other formats.

        Args:
            limits: What else decides which rows are kept: the model and the lengths, where ``too_long`` is not keep.
        """
        first = self.all_sources()[0]
        name = "--".join(filter(None, [first.source.strip("/").replace("/", "--"), first.config]))
        if self == Data(source=self.source, config=self.config) and not limits:
            return slug(name)
        text = json.dumps([self.specification(), limits], sort_keys=True)
        return f"{slug(name, 50)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
