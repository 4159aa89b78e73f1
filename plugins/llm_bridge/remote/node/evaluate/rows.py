"""The held-out rows of an evaluation, and their prompts as tokens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Optional

from llm_bridge.remote.node.common.job_io import JobError, Settings, log_line, read_json
from llm_bridge.remote.node.hub import loadable

Row = dict[str, Any]
COLUMNS = ("prompt", "messages", "data_source", "reward_model", "extra_info")


def with_prompts(settings: Settings) -> tuple[list[Row], list[list[int]]]:
    """Return the rows of an evaluation, and their prompts as token ids.

    Args:
        settings: ``test_file``, ``rows``, ``seed``, ``tokenizer`` (the base model's directory), ``trust_remote_code``,
            ``chat_template``, ``template_options`` and ``decoding``.

    Raises:
        JobError: There are no rows that can be used.
    """
    model = Path(settings["tokenizer"])
    tokenizer = loadable.load_tokenizer(model, "base_model", trust_remote_code=settings["trust_remote_code"])
    if settings["chat_template"]:
        tokenizer.chat_template = settings["chat_template"]
    context = context_length(model)
    return tokenize(
        read(Path(settings["test_file"]), settings["rows"], settings["seed"]),
        tokenizer,
        settings["template_options"],
        context - settings["decoding"]["max_tokens"] if context else None,
    )


def context_length(model: Path) -> Optional[int]:
    """Return the number of tokens of the model's context; None where its configuration does not say it."""
    found = (read_json(model / "config.json") or {}).get("max_position_embeddings")
    return found if isinstance(found, int) else None


def draw(count: int, wanted: Optional[int], seed: int) -> list[int]:
    """Return the numbers of the rows that are used: drawn by the seed, in their order; all where there are not more."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), wanted))


def read(path: Path, wanted: Optional[int], seed: int) -> list[Row]:
    """Return rows of the test split: ``number``, ``prompt``, ``data_source``, ``ground_truth``, ``extra_info``.

    Raises:
        JobError: The file has no rows, or a row has no prompt.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        names = [name for name in COLUMNS if name in file.schema_arrow.names]
        table = file.read(columns=names)
    numbers = draw(table.num_rows, wanted, seed)
    if not numbers:
        raise JobError(
            f"{path} has no rows to evaluate on: see data.test_split and data.test_fraction in docs/data.md",
            kind="bad_config",
        )
    return [_row(number, row, path) for number, row in zip(numbers, table.take(numbers).to_pylist())]  # noqa: B905


def _row(number: int, row: Row, path: Path) -> Row:
    prompt = row.get("prompt")
    if prompt is None:  # rows of SFT in verl's own shape
        messages = row.get("messages") or []
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        prompt = messages[: answers[-1]] if answers else []
    if not prompt:
        raise JobError(f"row {number} of {path} has no prompt to answer", kind="bad_config")
    return {
        "number": number,
        "prompt": prompt,
        "data_source": row.get("data_source"),
        "ground_truth": (row.get("reward_model") or {}).get("ground_truth"),
        "extra_info": row.get("extra_info"),
    }


def tokenize(
    rows: list[Row], tokenizer: Any, template_options: dict[str, Any], limit: Optional[int]
) -> tuple[list[Row], list[list[int]]]:
    """Return the rows that fit into the model's context, and their prompts as token ids.

    Args:
        rows: Rows as of :func:`read`.
        tokenizer: The tokenizer, with the template.
        template_options: verl's ``data.apply_chat_template_kwargs``.
        limit: Number of tokens of a prompt at most; None for any.

    Raises:
        JobError: No row fits.
    """
    kept: list[Row] = []
    prompts: list[list[int]] = []
    longest = 0
    for row in rows:
        ids = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=False, **template_options
        )
        longest = max(longest, len(ids))
        if limit is None or len(ids) <= limit:
            kept.append(row)
            prompts.append(list(ids))
    if not kept:
        raise JobError(
            f"no prompt leaves room for an answer: the longest one has {longest} tokens, and {max(0, limit or 0)} fit "
            "beside evaluate.decoding.max_tokens into the model's context. Lower evaluate.decoding.max_tokens.",
            kind="bad_config",
        )
    if left := len(rows) - len(kept):
        log_line(
            f"WARNING: {left} of {len(rows)} rows are left out: their prompts have more than {limit} tokens"
        )
    return kept, prompts
