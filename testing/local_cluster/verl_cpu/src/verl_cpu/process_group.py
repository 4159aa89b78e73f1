"""Shim for ``torch.distributed``."""

from __future__ import annotations

import functools
from typing import Any

import torch.distributed


def allow_gloo_on_cpu() -> None:
    """Let verl open a process group for device ``cpu``.

    verl requests the backend ``cpu:gloo,DEVICE:BACKEND`` (``verl/utils/distributed.py``). For device ``cpu``
    that names the CPU twice, which torch refuses ("Duplicate device type cpu").
    """
    original = torch.distributed.init_process_group

    @functools.wraps(original)
    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        return original("cpu:gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    torch.distributed.init_process_group = init_process_group
