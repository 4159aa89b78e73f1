"""Write ``docs/troubleshooting.md`` from the classes and signatures: ``python -m llm_bridge.failures.docs``."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from llm_bridge.failures.decision import MOST_STALE, MOST_TAKEN
from llm_bridge.failures.kinds import KINDS
from llm_bridge.failures.signatures import TABLE

PATH = Path(__file__).resolve().parents[3] / "docs" / "troubleshooting.md"
WIDTH = 118

# The four troubles that everybody has come first.
SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("NCCL and the network", ("network", "hang")),
    ("Ray does not come up, or cannot be reached", ("ray_bring_up",)),
    ("GPU memory", ("cuda_oom",)),
    (
        "Slurm ends the job",
        (
            *(
                "time_limit",
                "preempted",
                "node_failure",
                "forgotten",
                "cancelled",
                "host_oom",
                "gpu_hardware",
                "bad_node",
            ),
            "task_limit",
        ),
    ),
    (
        "The environment, settings and files",
        ("environment", "bad_config", "missing_path", "checkpoint_incompatible"),
    ),
    ("Disks and tokens", ("disk_full", "token_refused", "hub_away")),
    ("Everything else", ("unknown",)),
)

INTRO = f"""\
# Troubleshooting

<!-- Made by `make docs` from plugins/llm_bridge/failures (kinds.py, signatures.py): change it there. -->

When a job fails, its task's log ends with what was found out:

    Cause: cuda_oom (a GPU ran out of memory)
    Evidence: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 5.25 GiB. … (…/attempt-1/output.log:4711)
    Newest complete checkpoint: step 40
    Spent by this attempt: 12.50 GPU-hours, of them 1.20 since it
    What to do: lower *micro_batch_size_per_gpu …
    Next: stops: the same batch on the same GPUs needs the same memory

The same is the XCom `diagnosis` of the task, and what alerts tell. Evidence is trusted in this order: Slurm's verdict
(`sacct`), the job's own word (`reason.json`), Ray's, the earliest root cause in the logs, memory and exit codes. What
other ranks print when one has failed (a watchdog's timeout, `ChildFailedError`, `ActorDiedError`) counts only where
nothing else explains the failure.

What follows is up to the cause. Whatever it is, a training ends after {MOST_STALE} attempts in a row that failed by
themselves and made no new complete checkpoint, or {MOST_TAKEN} that were preempted, lost a node or were forgotten;
and a job that says `"retry": false` in its `reason.json` is not run again. `retries` of a task are for the rest; give
an operator a `retry_policy` of your own to decide otherwise. What goes on within the try does so for training; a job
without checkpoints (a merge, an upload, a script of yours) is begun anew up to {MOST_TAKEN - 1} times within the try,
and not against its time limit: there its `retries` count. A sensor of another task's job never has it run again.
"""


def page() -> str:
    """The whole text."""
    return "\n".join([INTRO, *_overview(), *_sections()]).rstrip() + "\n"


def _overview() -> Iterator[str]:
    yield "| cause | what follows |"
    yield "| --- | --- |"
    for _, kinds in SECTIONS:
        for name in kinds:
            yield f"| [`{name}`](#{name}): {KINDS[name].title} | {KINDS[name].action.value} |"
    yield ""


def _sections() -> Iterator[str]:
    for title, kinds in SECTIONS:
        yield f"## {title}\n"
        for name in kinds:
            yield from _kind(name)


def _kind(name: str) -> Iterator[str]:
    kind = KINDS[name]
    yield f"### {name}\n"
    yield _wrapped(f"{kind.title[0].upper()}{kind.title[1:]}. It {kind.action.value}. Why: {kind.why}.")
    yield _wrapped(f"**What to do.** {kind.advice}")
    signatures = [signature for signature in TABLE if signature.kind == name]
    for cascade, told in ((False, "In the log:"), (True, "In the log, if nothing else explains it:")):
        lines = [f"    {_short(s.excerpt)}" for s in signatures if s.cascade is cascade]
        if lines:
            yield "\n".join([told, "", *lines, ""])
    for signature in signatures:
        if signature.advice:
            yield _wrapped(f"*{signature.id}*: {signature.advice}")


def _wrapped(text: str) -> str:
    # Patterns of verl's keys begin with an asterisk that is no emphasis.
    return textwrap.fill(re.sub(r"\*(?=micro|max_token|offload)", r"\*", text), WIDTH) + "\n"


def _short(line: str) -> str:
    return line if len(line) <= WIDTH - 4 else f"{line[: WIDTH - 6]} …"


def main() -> int:
    """Write the page; with ``--check`` only say whether the one on disk is current."""
    if "--check" in sys.argv[1:]:
        return 0 if PATH.exists() and PATH.read_text(encoding="utf-8") == page() else 1
    PATH.write_text(page(), encoding="utf-8")
    print(f"written: {PATH}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
