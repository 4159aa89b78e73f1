"""Question-and-answer data into the shape that verl trains on.

For SFT a ``messages`` column; for PPO the columns of verl's own ``examples/data_preprocess/gsm8k.py``, whose reward
compares the last ``#### NUMBER`` of an answer with ``ground_truth`` (``verl/utils/reward_score/gsm8k.py``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from job_io import JobError

SPLITS = ("train", "test")
INSTRUCTION = 'Let\'s think step by step and output the final answer after "####".'
_ANSWER = re.compile(r"#### (-?[0-9.,]+)")


def row(question: str, answer: str, split: str, index: int) -> dict[str, Any]:
    """One row as verl reads it.

    :raises ValueError: the answer has no ``#### NUMBER``.
    """
    numbers = _ANSWER.findall(answer)
    if not numbers:
        raise ValueError("the answer has no '#### NUMBER'")
    prompt = {"role": "user", "content": f"{question} {INSTRUCTION}"}
    return {
        "data_source": "openai/gsm8k",  # chooses verl's reward function
        "prompt": [prompt],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": numbers[-1].replace(",", "")},
        "extra_info": {"split": split, "index": index, "question": question, "answer": answer},
        "messages": [prompt, {"role": "assistant", "content": answer}],
    }


def parquet_files(directory: Path, config: str, split: str) -> list[Path]:
    """The files of one split: ``CONFIG/SPLIT-*.parquet`` as on the Hub, or without the CONFIG directory.

    :raises JobError: there are none.
    """
    for place in (directory / config, directory):
        if found := sorted(place.glob(f"{split}-*.parquet")) or sorted(place.glob(f"{split}.parquet")):
            return found
    raise JobError(
        f"data.source: no {config}/{split}-*.parquet in {directory}. Needed are train and test, as parquet files "
        "with the columns question and answer; data.config names the directory.",
        kind="missing_path",
    )


def convert(directory: Path, config: str, split: str, target: Path) -> int:
    """Read one split and write it as ``target``.

    :returns: the number of rows.
    :raises JobError: files or columns are missing, or an answer has no number.
    """
    import pandas

    rows: list[dict[str, Any]] = []
    for path in parquet_files(directory, config, split):
        try:
            table = pandas.read_parquet(path)
        except (OSError, ValueError) as error:
            raise JobError(f"data.source: cannot read {path}: {error}", kind="missing_path") from error
        if lacking := {"question", "answer"} - set(table.columns):
            raise JobError(
                f"data.source: {path} has no column {' and no '.join(sorted(lacking))}; it has "
                f"{', '.join(map(str, table.columns))}"
            )
        for number, (question, answer) in enumerate(table[["question", "answer"]].itertuples(index=False)):
            try:
                rows.append(row(question, answer, split, len(rows)))
            except ValueError as error:
                raise JobError(f"data.source: {path}, row {number}: {error}") from error
    pandas.DataFrame(rows).to_parquet(target)
    return len(rows)
