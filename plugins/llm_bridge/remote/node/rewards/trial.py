"""Try the reward of PPO on rows of its data, before anything asks for GPUs (stage ``prepare``)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common import programs
from llm_bridge.remote.node.common.job_io import JobError, Settings, log_line
from llm_bridge.remote.node.rewards import function, reference, trial_calls
from llm_bridge.remote.node.rewards.trial_calls import CASES, EMPTY, LONG, OTHER, REFERENCE, SLOW_SECONDS

PROGRAM = "try-reward"
ROWS = 200
# Rows that are started after this time are not tried.
BUDGET_SECONDS = 120.0
# End of the reward's output that is kept.
KEPT_BYTES = 20_000
# Share of rows whose reference may fail to score above the rest: data sets have a few wrong or unreadable answers.
TOLERATED = 0.1
# verl's reward for it is known, and data/gsm8k.py checks each row against it.
GSM8K = "openai/gsm8k"
# Errors that a message names.
_NAMED = 3
# verl's settings with which a recipe has chosen a reward by hand.
_KEYS = ("custom_reward_function.", "reward_model.", "sandbox_fusion.")
BY_HAND = (*_KEYS, *(f"reward.{key}" for key in _KEYS))


def check(training: Settings, mode: str, attempt: Path) -> None:
    """Try the reward, and stop the run if it cannot work.

    Args:
        training: Settings of the program ``ppo``.
        mode: The recipe's ``ppo.reward_trial``: ``refuse``, ``warn`` or ``skip``.
        attempt: Directory of this attempt.

    Raises:
        JobError: The reward failed, and ``mode`` is ``refuse``; the message has the rows.
    """
    reward: Optional[Settings] = training.get("reward")
    if mode == "skip":
        return log_line("ppo.reward is not tried: ppo.reward_trial is 'skip'")
    if model := (reward or {}).get("model"):
        _check_model(model)
        if not reward or not reward.get("terms"):
            return log_line(f"ppo.reward: {model} is not tried, because it needs GPUs")
    by_hand = [key for key in training["verl"] if key.lstrip("+").startswith(BY_HAND)]
    if not reward and by_hand:
        return log_line(f"the reward of ppo.verl ({by_hand[0]}) is not tried: only ppo.reward is")
    rows = read_rows(Path(training["train_files"]))
    if not reward and all(row["data_source"] == GSM8K for row in rows):
        return None
    if model:
        log_line("ppo.reward: the function is loaded and not called, because its reward model needs GPUs")
        rows = []
    plan(rows, reward)
    records, exit_code, output = _call(rows, reward, attempt)
    for line in comparison_notes(rows, reward):
        log_line(f"ppo.reward: {line}")
    if problems := list(find_problems(records, exit_code, output, rows, reward)):
        text = (
            f"ppo.reward failed its trial on rows of {training['train_files']} (the first row is row 0):\n  - "
            + "\n  - ".join(problems)
            + "\nCorrect the reward or the data (docs/rewards.md). To train with this reward nevertheless, set "
            "ppo.reward_trial to warn."
        )
        if mode == "refuse":
            raise JobError(text, kind="bad_config")
        return log_line(f"warning: {text}")
    log_line(f"ppo.reward: tried on {len({r['row'] for r in records})} rows; {summary(records)}")
    return None


def read_rows(path: Path, count: int = ROWS) -> list[dict[str, Any]]:
    """Return rows of a parquet file, of all its parts: number, data_source, ground_truth, extra_info, messages.

    Args:
        path: The file.
        count: Number of rows at most.
    """
    import pyarrow.parquet

    columns = ("data_source", "reward_model", "extra_info", "messages")
    found: list[dict[str, Any]] = []
    with pyarrow.parquet.ParquetFile(path) as file:
        names = [name for name in columns if name in file.schema_arrow.names]
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        step = max(1, len(sizes) // 20)
        groups = range(0, len(sizes), step)
        each = -(-count // max(1, len(groups)))
        for group in groups:
            batch = next(file.iter_batches(batch_size=each, row_groups=[group], columns=names), None)
            for number, row in enumerate(batch.to_pylist() if batch else (), sum(sizes[:group])):
                found.append(
                    {
                        "number": number,
                        "data_source": row.get("data_source"),
                        "ground_truth": (row.get("reward_model") or {}).get("ground_truth"),
                        "extra_info": row.get("extra_info"),
                        "messages": row.get("messages"),
                    }
                )
    return found[:count]


def plan(rows: list[dict[str, Any]], reward: Optional[Settings]) -> None:
    """Add to each row the responses to try: ``reference``, ``certain`` and ``other`` (another row's; None: no such)."""
    for row in rows:
        row["reference"], row["certain"] = reference.of(row, reward)
    for i, row in enumerate(rows):
        following = (*rows[i + 1 :], *rows[:i])
        row["other"] = next(
            (
                item["reference"][0]
                for item in following
                if row["reference"]
                and item["reference"]
                and item["ground_truth"] != row["ground_truth"]
                and item["reference"][0] not in row["reference"]
            ),
            None,
        )


def comparison_notes(rows: list[dict[str, Any]], reward: Optional[Settings]) -> Iterator[str]:
    """Yield why rows are not compared with a reference answer."""
    if not rows:
        return
    if not reference.uses_truth(reward):
        yield "no reference answer is compared, because the reward does not depend on the ground truth"
    elif lacking := sum(not row["reference"] for row in rows):
        yield f"{lacking} of {len(rows)} rows have no ground truth: for them no reference answer is known"


def find_problems(
    records: list[dict[str, Any]],
    exit_code: int,
    output: str,
    rows: list[dict[str, Any]],
    reward: Optional[Settings],
) -> Iterator[str]:
    """Yield what is wrong with a reward.

    Args:
        records: Lines of trial_calls.py.
        exit_code: Its exit code.
        output: End of what the reward printed.
        rows: The rows that were tried.
        reward: The settings' ``reward``.
    """
    if records and (text := records[0].get("load")):
        module = records[0]["module"]
        hint = f": install the package of {module} there, or do without it" if module else ""
        yield f"it cannot be imported in {sys.executable}: {text}{hint}"
        return
    yield from _without_truth(rows, reward)
    done = [record for record in records if record.get("done")]
    # A reward may end its process with exit code 0, too.
    if exit_code or (rows and not (records and records[-1].get("done"))):
        yield _ended(records, exit_code, output)
    if failed := [record for record in done if "error" in record]:
        counts = Counter(record["error"] for record in failed)
        if len(counts) > _NAMED:
            yield f"{len(failed)} of {len(done)} calls failed, such as:"
        for error, count in counts.most_common(_NAMED):
            first = next(record for record in failed if record["error"] == error)
            more = f"; the same in {count} calls" if count > 1 else ""
            yield f"row {first['row']} with {first['case']}: {error}{_hint(error)}{more}"
    slow = [record for record in done if record.get("seconds", 0) > SLOW_SECONDS]
    if slow and not (reward or {}).get("sandbox_url"):
        worst = max(slow, key=lambda record: record["seconds"])
        yield (
            f"row {worst['row']} with {worst['case']}: a call takes {worst['seconds']:.1f} seconds, and GPUs wait for "
            f"it; {len(slow)} of {len(done)} calls take more than {SLOW_SECONDS:.0f} second"
        )
    scores = [record["score"] for record in done if "score" in record]
    if len(scores) > 1 and len(set(scores)) == 1:
        log_line(
            f"warning: ppo.reward: all {len(scores)} calls score {scores[0]:g}, from which a model learns nothing"
        )
    yield from _not_above(done, rows)


def _without_truth(rows: list[dict[str, Any]], reward: Optional[Settings]) -> Iterator[str]:
    """Yield that too many rows lack the ground truth that built-in rewards compare a response with."""
    names = [term["name"] for term in (reward or {}).get("terms", []) if term["name"] in reference.FORMS]
    lacking = [row["number"] for row in rows if row["ground_truth"] in reference.NO_TRUTH]
    if names and len(lacking) > TOLERATED * len(rows):
        yield (
            f"{len(lacking)} of {len(rows)} rows have no ground truth, with which {' and '.join(names)} compares a "
            f"response, such as row {lacking[0]}: name its column with data.columns.truth (docs/data.md)"
        )


def _not_above(done: list[dict[str, Any]], rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the rows whose reference answer does not score above the other responses, if they are too many."""
    scores: dict[int, dict[str, float]] = {}
    for record in done:
        if "score" in record:
            cases = scores.setdefault(record["row"], {})
            cases[record["case"]] = max(cases.get(record["case"], record["score"]), record["score"])
    compared, failed = 0, []
    certain = {row["number"]: row["certain"] for row in rows}
    for row, cases in scores.items():
        others = {case: cases[case] for case in (OTHER, EMPTY, LONG) if case in cases}
        if REFERENCE not in cases or not others:
            continue
        compared += 1
        best = max(others, key=lambda case: others[case])
        if cases[REFERENCE] <= others[best]:
            failed.append(
                (row, f"row {row}: the reference answer scores {cases[REFERENCE]:g}, {best} {others[best]:g}")
            )
    if not failed:
        return
    shown = "; ".join(text for _, text in failed[:5])
    text = f"{len(failed)} of {compared} reference answers do not score above other responses: {shown}"
    if len(failed) <= TOLERATED * compared:
        log_line(f"warning: ppo.reward: {text}")
    elif not any(certain[row] for row, _ in failed):
        log_line(
            f"ppo.reward: no reference answer is compared: the data have no responses, and the ground truth alone does "
            f"not score above other responses ({shown})"
        )
    else:
        yield text


def _ended(records: list[dict[str, Any]], exit_code: int, output: str) -> str:
    """Return what ended the process of the calls."""
    line = re.search(rf'/{attempt_dir.REWARDS}/(\w+\.py)", line (\d+)', output)
    place = f" (include/rewards/{line[1]}, line {line[2]})" if line else ""
    last = records[-1] if records else None
    where = (
        f"row {last['row']} with {last['case']}" if last and not last.get("done") else "while it was loaded"
    )
    if "Timeout (" in output:
        seconds = trial_calls.CALL_SECONDS if last else trial_calls.LOAD_SECONDS
        return f"{where}: no answer in {seconds:.0f} seconds{place}"
    cause = f"by signal {-exit_code}" if exit_code < 0 else f"with exit code {exit_code}"
    return f"{where}: the reward ended its process {cause}{place}; its last output: {output[-300:].strip() or '(none)'}"


def _hint(error: str) -> str:
    if error.startswith("NotImplementedError: Reward function is not implemented for"):
        return ": verl has no reward for this data_source; set ppo.reward in the recipe"
    return ""


def summary(records: list[dict[str, Any]]) -> str:
    """Return the mean score of each case."""
    texts = []
    for case in CASES:
        if found := [record["score"] for record in records if record["case"] == case and "score" in record]:
            texts.append(f"{case} {sum(found) / len(found):.3g}")
    return f"mean scores: {', '.join(texts)}" if texts else "no call"


def _call(
    rows: list[dict[str, Any]], reward: Optional[Settings], attempt: Path
) -> tuple[list[dict[str, Any]], int, str]:
    """Run the calls in a process of their own; return their records, its exit code and the end of its output."""
    function.write_files(reward or {}, attempt)
    folder = function.folder(attempt)
    folder.mkdir(exist_ok=True)
    settings, records, log = (
        folder / name
        for name in (attempt_dir.REWARD_TRIAL, attempt_dir.REWARD_CALLS, attempt_dir.REWARD_OUTPUT)
    )
    given = {
        "reward": reward,
        "folder": str(attempt),
        "records": str(records),
        "budget_seconds": BUDGET_SECONDS,
    }
    settings.write_text(json.dumps({**given, "rows": rows}, default=str), encoding="utf-8")
    records.unlink(missing_ok=True)
    limit = BUDGET_SECONDS + trial_calls.LOAD_SECONDS + 10 * trial_calls.CALL_SECONDS
    with log.open("w", encoding="utf-8") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "llm_bridge.remote.node", PROGRAM, str(settings)],
            env={**os.environ, "PYTHONPATH": programs.python_path(os.environ), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            exit_code = child.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            exit_code = -signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):  # it, or processes that the reward has started
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    lines = records.read_text(encoding="utf-8").splitlines() if records.exists() else []
    with log.open("rb") as printed:
        printed.seek(-min(log.stat().st_size, KEPT_BYTES), os.SEEK_END)
        output = printed.read()
    log.write_bytes(output)
    return [json.loads(line) for line in lines], exit_code, output.decode("utf-8", "replace")


def _check_model(model: str) -> None:
    if not os.path.isdir(model):
        raise JobError(f"ppo.reward.model: {model} is no directory on this node", kind="missing_path")
