"""An evaluation as lines of text, for the job's log and the run's summary."""

from __future__ import annotations

from typing import Any

MODELS = ("base", "sft", "rl")
DIFFERENCES = ("rl-base", "rl-sft", "sft-base")


def in_order(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return an evaluation with its models in the order of training; XComs in PostgreSQL lose the order of keys."""

    def ordered(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        return {name: values[name] for name in names if name in values}

    samples = [{**sample, "answers": ordered(sample["answers"], MODELS)} for sample in evaluation["samples"]]
    return {
        **evaluation,
        "models": ordered(evaluation["models"], MODELS),
        "differences": ordered(evaluation["differences"], DIFFERENCES),
        "samples": samples,
    }


def comparable(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return what two evaluations must have in common for their scores to be comparable."""
    data_hash = (evaluation.get("data") or {}).get("hash")
    return {**{key: evaluation.get(key) for key in ("metric", "rows", "conditions")}, "data_hash": data_hash}


def table(evaluation: dict[str, Any]) -> list[str]:
    """Return the evaluation as lines of text."""
    lines = [f"evaluation: {evaluation['metric']} on {evaluation['rows']} rows, 95 % intervals"]
    for name, found in evaluation["models"].items():
        low, high = found["interval"]
        lines.append(
            f"  {name:<8} {found['score']:.4f}  [{low:.4f}, {high:.4f}]  {found['length_mean']:.0f} tokens per answer, "
            f"{found['cut_share']:.1%} cut"
        )
        if late := found.get("reward_timeouts"):
            lines.append(
                f"           {late} answers count as 0: the reward did not end within its time limit"
            )
    for name, found in evaluation["differences"].items():
        low, high = found["interval"]
        lines.append(f"  {name:<8} {found['mean']:+.4f}  [{low:+.4f}, {high:+.4f}]")
    return lines
