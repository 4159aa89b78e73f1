"""Make a small tensor on every visible GPU: ``python node.pyz preflight-tensors COUNT``.

The last line of the output is a JSON list of faults.
"""

from __future__ import annotations

import json
import sys
from typing import Any

NUMBERS = 1024


def main() -> None:
    """Run the program."""
    import torch

    print(json.dumps(faults(torch.cuda, torch.ones, int(sys.argv[1]))))


def faults(cuda: Any, ones: Any, count: int) -> list[str]:
    """Return what is wrong with the visible GPUs.

    Args:
        cuda: ``torch.cuda``.
        ones: ``torch.ones``.
        count: Required number of GPUs.
    """
    visible = cuda.device_count()
    if visible < count:
        return [f"CUDA has {visible} of {count} GPUs{_why(cuda)}"]
    found = []
    for number in range(visible):
        try:
            total = ones(NUMBERS, device=f"cuda:{number}").sum().item()
        except Exception as error:  # torch raises RuntimeError, AcceleratorError and others
            found.append(f"GPU {number} of the job does not work: {_first_line(error)}")
            continue
        if total != NUMBERS:
            found.append(f"GPU {number} of the job computes wrongly: {total} instead of {NUMBERS}")
    return found


def _why(cuda: Any) -> str:
    try:
        cuda.init()
    except Exception as error:
        return f": {_first_line(error)}"
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
