"""Choose which settings of memory and speed a tuner tries, and which of those that it measured to recommend.

None of them changes what a step computes, but for rounding: verl adds the losses of micro batches, divided by the
tokens of the whole batch (``sft_loss``), so the batch and the steps stay the same. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from llm_bridge.remote.node.verl import sft_rules

# Environment variables, both JSON. For hooks/tune.py: paths of the attempt's "folder" TUNING and of the file "answer",
# and "deadline" in epoch seconds. For hooks/sft.py: settings of verl to train with.
OPTIONS_VARIABLE = "LLM_BRIDGE_TUNING"
TUNED_VARIABLE = "LLM_BRIDGE_TUNED"

MICRO, DYNAMIC, BATCH = sft_rules.MICRO, sft_rules.DYNAMIC, sft_rules.BATCH
TOKENS = "data.max_token_len_per_gpu"
CHECKPOINTING = "model.enable_gradient_checkpointing"
OFFLOAD = "engine.offload_policy"
KEYS = (MICRO, DYNAMIC, TOKENS, CHECKPOINTING, OFFLOAD)

# Gain below which the recipe's own settings are recommended: runs of the same settings differ by as much.
LEAST_GAIN = 0.03
# Settings whose speeds differ by less are equal; the one that needs less memory is recommended.
EQUAL = 0.02
OUT_OF_MEMORY = "out of memory"
# Fraction of a GPU's memory that rows of the greatest length may take: fragmentation and validation need some, too.
MEMORY = 0.92


class Candidate(NamedTuple):
    """Settings to measure.

    Attributes:
        dynamic: True if micro batches are packed by tokens (``use_dynamic_bsz``).
        size: Rows of a micro batch; with ``dynamic``, tokens.
        checkpointing: True if activations are computed again in the backward pass.
        offload: True if weights and optimizer are kept in the host's memory (fsdp2).
    """

    dynamic: bool
    size: int
    checkpointing: bool
    offload: bool

    def settings(self) -> dict[str, Any]:
        """Return verl's settings."""
        size = {TOKENS: self.size} if self.dynamic else {MICRO: self.size}
        return {DYNAMIC: self.dynamic, **size, CHECKPOINTING: self.checkpointing, OFFLOAD: self.offload}


class Training(NamedTuple):
    """Training to tune.

    Attributes:
        own: The recipe's settings.
        share: Rows of a batch that one GPU processes (one group of GPUs, with sequence parallelism).
        max_length: Most tokens of a row.
        packed: True if rows are packed without padding, so that packing by tokens can save time.
        offloadable: True if the engine can keep weights and optimizer in the host's memory.
    """

    own: Candidate
    share: int
    max_length: int
    packed: bool
    offloadable: bool

    def rows(self, candidate: Candidate) -> int:
        """Return the rows of the greatest length that are in a micro batch at once."""
        return min(
            self.share, max(1, candidate.size // self.max_length if candidate.dynamic else candidate.size)
        )


class Measured(NamedTuple):
    """A candidate's measurement, or why it has none.

    Attributes:
        candidate: The settings.
        tokens_per_s: Tokens a second of all GPUs together, on rows of the data; None if it does not fit.
        peak_gib: Most memory of a GPU in use with rows of the greatest length; None without a GPU.
        reserved_gib: Most memory that torch reserved for it.
        problem: Why it was not measured.
    """

    candidate: Candidate
    tokens_per_s: Optional[float] = None
    peak_gib: Optional[float] = None
    reserved_gib: Optional[float] = None
    problem: Optional[str] = None

    def as_json(self) -> dict[str, Any]:
        """Return the content of a file."""
        return {**self._asdict(), "candidate": list(self.candidate)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Measured:
        """Return what :meth:`as_json` wrote."""
        return cls(**{**values, "candidate": Candidate(*values["candidate"])})


def training(lookup: Callable[[str], Any], gpus: int) -> Training:
    """Return what verl's configuration trains.

    Args:
        lookup: Returns the value of a dotted key.
        gpus: Number of GPUs of all nodes together.
    """
    dynamic = bool(lookup(DYNAMIC))
    own = Candidate(
        dynamic,
        int(lookup(TOKENS if dynamic else MICRO)),
        bool(lookup(CHECKPOINTING)),
        bool(lookup(OFFLOAD)),
    )
    share = int(lookup(BATCH)) // sft_rules.replicas(lookup, gpus)
    packed = bool(lookup("model.use_remove_padding")) and lookup("data.pad_mode") == "no_padding"
    offloadable = lookup("engine.strategy") == "fsdp2"
    return Training(own, share, int(lookup("data.max_length")), packed, offloadable)


def not_tunable(lookup: Callable[[str], Any]) -> str | None:
    """Return why verl's configuration cannot be tuned; None if it can."""
    if not str(strategy := lookup("engine.strategy")).startswith("fsdp"):
        return f"the tuner measures verl's FSDP engine only, and engine.strategy is {strategy}"
    return None


def following(
    tuned: Training, measured: Sequence[Measured], memory_gib: float | None
) -> Candidate | Measured | None:
    """Return what comes after some measurements; a restarted program resumes after them.

    First the recipe's own settings; then larger micro batches until one does not fit, with gradient checkpointing as in
    the recipe and the other way; then the other way of packing. Offloading is tried only where nothing fits without it.

    Args:
        tuned: What is tuned.
        measured: What was measured, in order.
        memory_gib: Memory of a GPU; None without one.

    Returns:
        The next candidate; a measurement of a candidate that is not worth a try; None at the end.
    """
    done = {entry.candidate: entry for entry in measured}
    for candidate in _wanted(tuned, done, memory_gib):
        if candidate not in done:
            needed = _predicted(tuned, candidate, measured)
            if memory_gib and needed and needed > MEMORY * memory_gib:
                return Measured(candidate, problem=f"would need about {needed:.0f} GiB")
            return candidate
    return None


def _fits(entry: Measured, memory_gib: float | None) -> bool:
    """Return True if a measurement leaves some memory."""
    if entry.problem:
        return False
    return memory_gib is None or entry.peak_gib is None or entry.peak_gib <= MEMORY * memory_gib


def _wanted(
    tuned: Training, done: Mapping[Candidate, Measured], memory_gib: float | None
) -> Iterator[Candidate]:
    """Yield candidates in order; each decision rests on the measurements of those before."""

    def fits(candidate: Candidate) -> bool:
        return candidate in done and _fits(done[candidate], memory_gib)

    own = tuned.own
    for offload in (own.offload, not own.offload) if tuned.offloadable else (own.offload,):
        tried: list[Candidate] = []
        for checkpointing in (own.checkpointing, not own.checkpointing):
            base = own._replace(checkpointing=checkpointing, offload=offload)
            sizes = [size for size in _sizes(tuned) if size > own.size]
            for candidate in (base, *(base._replace(size=size) for size in sizes)):
                yield candidate
                tried.append(candidate)
                if not fits(candidate):
                    break
            if not fits(base):
                for size in reversed([size for size in _sizes(tuned) if size < own.size]):
                    yield (candidate := base._replace(size=size))
                    tried.append(candidate)
                    if fits(candidate):
                        break
        found = [candidate for candidate in tried if fits(candidate)]
        if found:
            fastest = max(found, key=lambda candidate: done[candidate].tokens_per_s or 0)
            yield from _other_packing(tuned, fastest)
            # Offloading only costs time where the settings fit without it.
            if not offload:
                return


def _sizes(tuned: Training) -> list[int]:
    """Return sizes of micro batches, each at least twice the one before: divisors of the share, or tokens."""
    if tuned.own.dynamic:
        sizes, most = [tuned.own.size], tuned.share * tuned.max_length
        while sizes[-1] < most:
            sizes.append(2 * sizes[-1])
        while sizes[0] // 2 >= tuned.max_length:
            sizes.insert(0, sizes[0] // 2)
        return sizes
    found: list[int] = []
    for size in (n for n in range(1, tuned.share + 1) if tuned.share % n == 0):
        if not found or size >= 2 * found[-1] or size == tuned.share:
            found.append(size)
    return found


def _other_packing(tuned: Training, fastest: Candidate) -> Iterator[Candidate]:
    """Yield the fastest candidate with the other kind of micro batches of the same memory."""
    rows = tuned.rows(fastest)
    if fastest.dynamic:
        yield fastest._replace(dynamic=False, size=max(n for n in range(1, rows + 1) if tuned.share % n == 0))
    elif tuned.packed:
        yield fastest._replace(dynamic=True, size=rows * tuned.max_length)


def _predicted(tuned: Training, candidate: Candidate, measured: Sequence[Measured]) -> float | None:
    """Return the memory that a candidate needs, in GiB, from two measurements of fewer rows: it grows with the rows."""
    points = sorted(
        {
            tuned.rows(entry.candidate): entry.peak_gib
            for entry in measured
            if entry.peak_gib is not None
            and entry.candidate[2:] == candidate[2:]
            and tuned.rows(entry.candidate) < tuned.rows(candidate)
        }.items()
    )[-2:]
    if len(points) < 2:
        return None
    (few, less), (many, more) = points
    return more + (more - less) / (many - few) * (tuned.rows(candidate) - many)


def best(measured: Sequence[Measured], memory_gib: float | None) -> Measured | None:
    """Return the fastest measurement that leaves some memory; of equal ones, that with the least memory.

    Args:
        measured: What was measured.
        memory_gib: Memory of a GPU; None without one.
    """
    good = [entry for entry in measured if entry.tokens_per_s and _fits(entry, memory_gib)]
    if not good:
        return None
    least = (1 - EQUAL) * max(entry.tokens_per_s or 0 for entry in good)
    equal = [entry for entry in good if (entry.tokens_per_s or 0) >= least]
    return min(equal, key=lambda entry: (entry.peak_gib or 0, -(entry.tokens_per_s or 0)))


def advice(
    tuned: Training, measured: Sequence[Measured], memory_gib: float | None, complete: bool = True
) -> dict[str, Any]:
    """Return what a run's result has of the tuning: ``text``, ``now``, ``best``, ``settings``, ``measured``.

    Args:
        tuned: What is tuned.
        measured: What was measured.
        memory_gib: Memory of a GPU; None without one.
        complete: False if there were further candidates.

    Returns:
        ``settings`` are verl's settings of the best candidate that differ from the recipe's; empty if its own are as
        fast.
    """
    now = next((entry for entry in measured if entry.candidate == tuned.own), None)
    found = best(measured, memory_gib)
    settings: dict[str, Any] = {}
    if found and (
        now is None or not now.tokens_per_s or (found.tokens_per_s or 0) > (1 + LEAST_GAIN) * now.tokens_per_s
    ):
        own = tuned.own.settings()
        settings = {key: value for key, value in found.candidate.settings().items() if own.get(key) != value}
    return {
        "text": _text(now, found, settings) + ("" if complete else "; further settings were not measured"),
        "now": now.tokens_per_s if now else None,
        "best": found.tokens_per_s if found else None,
        "settings": settings,
        "measured": [describe(entry) for entry in measured],
    }


def _text(now: Measured | None, found: Measured | None, settings: Mapping[str, Any]) -> str:
    if now is None:
        return "nothing was measured"
    before = _speed(now) if now.tokens_per_s else f"the recipe's settings do not fit ({now.problem})"
    if not found:
        return f"{before}; no other settings fit"
    if not settings:
        return f"{before} now; nothing that was measured is more than {LEAST_GAIN:.0%} faster"
    wanted = ", ".join(f"{key}: {as_yaml(value)}" for key, value in settings.items())
    before = f"{before} now" if now.tokens_per_s else before
    return f"{before}, {_speed(found)} with: {wanted}"


def _speed(entry: Measured) -> str:
    return f"{entry.tokens_per_s:,.0f} tokens/s"


def as_yaml(value: Any) -> str:
    """Return a setting's value as a recipe has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def describe(entry: Measured) -> str:
    """Return a measurement as a line of the log."""
    settings = entry.candidate.settings()
    names = {key: key.rpartition(".")[2] for key in settings}
    shown = [
        f"{names[key]}={as_yaml(value)}"
        for key, value in settings.items()
        if key not in (DYNAMIC, OFFLOAD) or value
    ]
    found = f"not measured: {entry.problem}" if entry.problem else _speed(entry)
    memory = f", {entry.peak_gib:.1f} GiB in use" if entry.peak_gib is not None else ""
    reserved = f" ({entry.reserved_gib:.1f} reserved)" if entry.reserved_gib is not None else ""
    return f"{' '.join(shown)}: {found}{memory}{reserved}"
