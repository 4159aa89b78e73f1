"""Report on prepared data, as the model will see them: tokens, share over the limit, and some rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from llm_bridge.remote.node.common.job_io import JobError, Settings, log_line
from llm_bridge.remote.node.data.shapes import Row
from llm_bridge.remote.node.stages import ppo, sft
from llm_bridge.remote.node.verl import trainer_config

# More rows are measured by a sample.
MEASURED_ROWS = 10_000
SHOWN_ROWS = 5
SHOWN_CHARACTERS = 400


class View(NamedTuple):
    """Format of a training's rows.

    Attributes:
        tokenizer: The model's.
        column: The column that it reads: messages or prompt.
        limit: The tokens that it takes; None if there is no training.
        limit_key: verl's key of the limit.
        stops: True if the training fails at a row over the limit.
        options: Further arguments of the tokenizer's ``apply_chat_template``.
    """

    tokenizer: Any
    column: str
    limit: Optional[int]
    limit_key: str
    stops: bool
    options: dict[str, Any]

    def texts(self, rows: Sequence[Row]) -> list[str]:
        """Return rows as the model will see them.

        Raises:
            JobError: The chat template refuses one.
        """
        texts = []
        for row in rows:
            try:
                texts.append(
                    self.tokenizer.apply_chat_template(row[self.column], tokenize=False, **self.options)
                )
            except Exception as error:  # jinja2's, and whatever a template raises
                raise JobError(
                    f"data: the model's chat template cannot format a row: {type(error).__name__}: {error}. Its "
                    f"{self.column}: {row[self.column]!s:.300}. Change the row, data.system, or the recipe's "
                    "custom_chat_template.",
                    kind="bad_config",
                ) from error
        return texts

    def lengths(self, rows: Sequence[Row]) -> list[int]:
        """Return the number of tokens of each row."""
        found = []
        for first in range(0, len(rows), 1000):
            texts = self.texts(rows[first : first + 1000])
            # The template writes the special tokens.
            tokens = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
            found += [len(ids) for ids in tokens["input_ids"]]
        return found

    def too_long(self, rows: Sequence[Row]) -> list[bool]:
        """Return the rows that are over the limit."""
        return [self.limit is not None and tokens > self.limit for tokens in self.lengths(rows)]


def view(settings: Settings, stage: str, tokenizer: Any) -> View:
    """Return the view of a training stage.

    Args:
        settings: The settings of the stage prepare.
        stage: ``sft`` or ``ppo``.
        tokenizer: The base model's tokenizer.

    Raises:
        JobError: verl refuses a setting.
    """
    templates = settings["chat_templates"]
    # PPO after SFT uses the template that SFT saves with its model.
    template = next((value for key, value in templates.items() if key.startswith(f"{stage}.")), None) or next(
        filter(None, templates.values()), None
    )
    options: dict[str, Any] = {} if template is None else {"chat_template": template}
    column = "messages" if stage == "sft" else "prompt"
    if stage == "ppo":
        options["add_generation_prompt"] = True
    training = settings["trainings"].get(stage)
    if training is None:
        return View(tokenizer, column, None, "", False, options)
    if stage == "sft":
        arguments = sft.arguments(training, training["nodes"], training["gpus_per_node"])
        data = trainer_config.load_config(sft.CONFIG, arguments).data
        limit, key = data.max_length, "data.max_length"
    else:
        data = ppo.compose(training)[1].data
        limit, key = data.max_prompt_length, "data.max_prompt_length"
    options |= dict(data.get("apply_chat_template_kwargs") or {})
    own_class = (data.get("custom_cls") or {}).get("path")
    # PPO truncates prompts in its agent loop, which depends on the rollout: only SFT is known to stop.
    stops = stage == "sft" and data.truncation == "error" and not own_class
    return View(tokenizer, column, limit, key, stops, options)


def check_column(directory: Path, stage: str) -> None:
    """Refuse data that lack what a training reads.

    Args:
        directory: Directory of the prepared data.
        stage: ``sft`` or ``ppo``.

    Raises:
        JobError: They have no such column.
    """
    import pyarrow.parquet

    column, needed = ("messages", "conversations with answers") if stage == "sft" else ("prompt", "prompts")
    names = pyarrow.parquet.read_schema(directory / "train.parquet").names
    if column not in names:
        raise JobError(
            f"{stage} learns from {needed} (column {column}), and the prepared data have only {', '.join(names)}: "
            f"{directory}. Give {stage} other data ({stage}.data), or another data.format.",
            kind="bad_config",
        )


def report(directory: Path, made: dict[str, Any], stage: str, seen: View) -> dict[str, Any]:
    """Return the report on the prepared data of a training stage, and print it.

    Args:
        directory: Directory of the prepared data.
        made: What :func:`build.build` returned when they were made; empty if an earlier version made them.
        stage: ``sft`` or ``ppo``.
        seen: The stage's view of a row.

    Raises:
        JobError: The training would stop at a row that is too long.
    """
    train = _measure(directory / "train.parquet", seen)
    test = _measure(directory / "test.parquet", seen)
    tokens = sorted(train.tokens)
    over, over_test = _over(train.tokens, seen.limit), _over(test.tokens, seen.limit)
    found: dict[str, Any] = {
        "hash": made.get("hash"),
        "rows": {"train": train.rows, "test": test.rows},
        **{key: made[key] for key in ("duplicates", "leaked", "too_long", "held_out") if key in made},
        "measured_rows": len(tokens),
        "tokens": {"p50": _quantile(tokens, 0.5), "p95": _quantile(tokens, 0.95), "max": tokens[-1]},
        "limit": seen.limit,
        "over_limit": over / len(tokens),
        "sample": train.sample,
    }
    _log(stage, found, seen)
    if seen.stops and over + over_test:
        raise JobError(
            f"data: {over} of {len(tokens)} rows of train and {over_test} of {len(test.tokens)} of test have more than "
            f"{seen.limit} tokens ({seen.limit_key}); the longest has {tokens[-1]} in train. verl would stop at the "
            f"first (data.truncation: error). Set data.too_long: drop in the recipe, raise {stage}.verl "
            f"{seen.limit_key}, or set {stage}.verl data.truncation to right, which cuts them.",
            kind="bad_config",
        )
    return found


def _over(tokens: Sequence[int], limit: Optional[int]) -> int:
    return sum(limit is not None and count > limit for count in tokens)


def _quantile(values: Sequence[int], share: float) -> int:
    return values[round(share * (len(values) - 1))]


class Measured(NamedTuple):
    """Measure of a split: its number of rows, the tokens of all or some of them, and texts of some."""

    rows: int
    tokens: list[int]
    sample: list[str]


def _measure(path: Path, seen: View) -> Measured:
    """Return the measure of all rows of a file, or of evenly spaced ones, a batch at a time."""
    import pyarrow
    import pyarrow.parquet

    tokens: list[int] = []
    sample: list[str] = []
    with pyarrow.parquet.ParquetFile(path) as file:
        total = file.metadata.num_rows
        step, first = -(-total // MEASURED_ROWS), 0
        for batch in file.iter_batches(batch_size=1000, columns=[seen.column]):
            wanted = pyarrow.array(range(-first % step, len(batch), step), pyarrow.int64())
            # Shown are the rows at which another fifth of the file begins.
            new = [n * total // SHOWN_ROWS for n in range(SHOWN_ROWS)]
            shown = [n - first for n in dict.fromkeys(new) if first <= n < first + len(batch)]
            texts = seen.texts(batch.take(shown).to_pylist()) if shown else []
            sample += [text[:SHOWN_CHARACTERS] for text in texts]
            tokens += seen.lengths(batch.take(wanted).to_pylist())
            first += len(batch)
    return Measured(total, tokens, sample)


def _log(stage: str, found: dict[str, Any], seen: View) -> None:
    rows, tokens = found["rows"], found["tokens"]
    counted = "" if found["measured_rows"] == rows["train"] else f" (of {found['measured_rows']} rows)"
    log_line(
        f"data of {stage}: {rows['train']} rows of train, {rows['test']} of test, hash {str(found['hash'])[:12]}"
    )
    for key, text in (
        ("held_out", "held out for test"),
        ("too_long", "too long"),
        ("duplicates", "exact duplicates"),
        ("leaked", "with a prompt that is in test as well"),
    ):
        if found.get(key):
            log_line(f"data of {stage}: {found[key]} rows {text}")
    limit = "" if seen.limit is None else f"; {found['over_limit']:.1%} over {seen.limit_key}={seen.limit}"
    log_line(
        f"data of {stage}: tokens a row{counted}: p50 {tokens['p50']}, p95 {tokens['p95']}, max {tokens['max']}{limit}"
    )
    for text in found["sample"]:
        log_line(f"data of {stage}: a row as the model sees it: {text!r}")
