"""Measure faster settings of SFT, and train nothing: ``python node.pyz tune SETTINGS``, where and as ``sft`` is run."""

from __future__ import annotations

import os

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common.job_io import JobError, Result, Settings, attempt, run
from llm_bridge.remote.node.stages import sft


def measure(settings: Settings) -> Result:
    """Return the tuner's report on the first node, None on the others.

    Args:
        settings: The settings.json of the stage ``sft``.

    Raises:
        JobError: The settings do not fit together, or nothing was measured.
    """
    nodes, gpus = sft.allocation(os.environ)
    training = sft.compose(settings, nodes, gpus)
    _, report = sft.tuning_of({**settings, "tune": "suggest"}, training, nodes, gpus)
    if not report:
        raise JobError(f"the tuner measured nothing; see {attempt() / attempt_dir.TUNING}")
    return report if os.environ.get("SLURM_NODEID", "0") == "0" else None


def main() -> None:
    """Run the program (``python node.pyz tune SETTINGS``)."""
    run(measure)
