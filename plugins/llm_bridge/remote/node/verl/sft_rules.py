"""Combinations of settings that verl 0.9.1's SFT refuses only on the GPUs.

``check`` applies these rules to the recipe before anything is submitted, and the programs ``prepare`` and ``sft`` to
verl's complete configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Returns the value of a dotted key; None if it is not set.
Lookup = Callable[[str], Any]

BATCH = "data.train_batch_size"
MICRO = "data.micro_batch_size_per_gpu"
DYNAMIC = "data.use_dynamic_bsz"
ULYSSES = "engine.ulysses_sequence_parallel_size"

# Largest micro batch that a message proposes.
MOST_ROWS = 1024

# verl's defaults of the keys that the rules read (trainer/config/sft_trainer_engine.yaml and engine/fsdp.yaml).
DEFAULTS = {BATCH: 256, MICRO: 4, DYNAMIC: True, ULYSSES: 1, "engine.strategy": "fsdp"}


def in_recipe(verl: Mapping[str, Any]) -> Lookup:
    """Return the lookup in a recipe's ``sft.verl`` (dotted keys), with verl's defaults for what it does not set."""
    given = {key.lstrip("+"): value for key, value in verl.items()}
    return lambda key: given.get(key, DEFAULTS.get(key))


def replicas(lookup: Lookup, gpus: int) -> int:
    """Return the number of processes with data of their own.

    Args:
        lookup: verl's settings.
        gpus: Number of GPUs of all nodes together.
    """
    parallel = lookup(ULYSSES)
    return max(gpus // (parallel if _whole(parallel) else 1), 1)


def problems(lookup: Lookup, gpus: int) -> Iterator[str]:
    """Yield the batches that cannot be divided: verl compares them in the first step only.

    Args:
        lookup: verl's settings.
        gpus: Number of GPUs of all nodes together.
    """
    batch, micro, among = lookup(BATCH), lookup(MICRO), replicas(lookup, gpus)
    # A reference to another setting is checked when verl's configuration is composed.
    if not _whole(batch) or not str(lookup("engine.strategy")).startswith("fsdp"):
        return
    if batch % among:
        below = batch - batch % among
        nearest = f"{below} or {below + among}" if below else f"{among}"
        yield f"{BATCH}={batch} is not a multiple of the {among} processes that share it: set it to {nearest}"
        return
    share = batch // among
    if lookup(DYNAMIC) or "${" in str(micro) or (_whole(micro) and share % micro == 0):
        return
    yield (
        f"{MICRO}={micro} does not divide the {share} rows of a process: {BATCH}={batch}, divided among {among}. Set "
        f"it to {divisors(share)}, or set {DYNAMIC}=true"
    )


def divisors(number: int) -> str:
    """Return the divisors of a number up to MOST_ROWS, as text for a message: ``1, 2, 4 or 8``."""
    found = [str(n) for n in range(1, min(number, MOST_ROWS) + 1) if number % n == 0]
    return " or ".join(filter(None, [", ".join(found[:-1]), found[-1]]))


def _whole(value: Any) -> bool:
    return type(value) is int and value > 0
