"""Compute log-probabilities and their gradients with verl's function and in blocks: seconds and memory of both.

Compares what verl uses without flash-attn. Runs with the Python of the cluster's environment (make log-probs-report),
on a GPU if there is one: python -m benchmarks.log_probs_report [TOKENS [VOCABULARY]]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from verl.utils import torch_functional

VERLS = torch_functional.logprobs_from_logits_v2

from llm_bridge.remote.node.verl.hooks import log_probs  # noqa: E402  (replaces verl's function)

ROUNDS = 5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS, VOCABULARY = (16_384, 128_256) if DEVICE == "cuda" else (8_192, 512)


def main() -> None:
    """Measure both in turn, for each type of number that verl's engines use, and print the comparison as JSON."""
    given = [int(argument) for argument in sys.argv[1:]]
    tokens, vocabulary = (given + [TOKENS, VOCABULARY][len(given) :])[:2]
    found: dict[str, Any] = {"device": DEVICE, "tokens": tokens, "vocabulary": vocabulary}
    for dtype in (torch.bfloat16, torch.float32):
        logits = torch.randn(tokens, vocabulary, device=DEVICE, dtype=dtype, requires_grad=True)
        labels = torch.randint(0, vocabulary, (tokens,), device=DEVICE)
        measured: dict[str, list[tuple[float, int | None]]] = {"verl": [], "blocks": []}
        for _ in range(ROUNDS):
            for name, function in (("verl", VERLS), ("blocks", log_probs.log_probs_in_blocks)):
                measured[name].append(measure(function, logits, labels))
        best = {name: min(values, key=lambda value: value[0]) for name, values in measured.items()}
        found[str(dtype).removeprefix("torch.")] = {
            **{name: {"seconds": round(seconds, 4), "mib": mib} for name, (seconds, mib) in best.items()},
            "verl_to_blocks_seconds": round(best["verl"][0] / best["blocks"][0], 2),
        }
        del logits, labels
    print(json.dumps(found, indent=2))


def measure(function: Callable[[Any, Any], Any], logits: Any, labels: Any) -> tuple[float, int | None]:
    """Return the seconds of values and gradients, and on a GPU the MiB that they needed beside the logits."""
    logits.grad = None
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    begin = time.perf_counter()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        values = function(logits, labels)
    values.float().mean().backward()
    if DEVICE == "cpu":
        return time.perf_counter() - begin, None
    torch.cuda.synchronize()
    return time.perf_counter() - begin, (torch.cuda.max_memory_allocated() - before) >> 20


if __name__ == "__main__":
    main()
