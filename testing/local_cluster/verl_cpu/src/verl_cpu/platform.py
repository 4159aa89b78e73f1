"""Platform ``cpu``: verl's device interface on a machine without accelerators."""

from __future__ import annotations

import os
import shutil
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def has_cuda() -> bool:
    """Return whether this is a CUDA machine, also in a Ray actor without a GPU (hence nvidia-smi)."""
    return torch.version.cuda is not None and (
        torch.cuda.is_available() or shutil.which("nvidia-smi") is not None
    )


def refuse_cuda(requested_resources: str) -> None:
    """Stop a run that would leave its GPUs idle.

    Args:
        requested_resources: The setting that selected the CPU, for the message.

    Raises:
        RuntimeError: This machine has CUDA devices.
    """
    if has_cuda():
        raise RuntimeError(
            f"{requested_resources} runs on CPUs only and this machine has CUDA devices. Remove {requested_resources},"
            " use actor_rollout_ref.rollout.name=vllm, and uninstall llm-bridge-verl-cpu from this environment:"
            " it is for llm-bridge's demo and tests."
        )


def _cpu_module() -> types.ModuleType:
    """``torch.cpu`` plus the names that verl calls on ``torch.cuda``; memory is the process's resident size."""
    module = types.ModuleType("torch.cpu")
    module.__dict__.update(
        {name: value for name, value in vars(torch.cpu).items() if not name.startswith("__")}
    )

    def resident(*_: Any, **__: Any) -> int:
        return psutil.Process().memory_info().rss

    def nothing(*_: Any, **__: Any) -> None:
        return None

    def free_and_total(*_: Any) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    module.__dict__.update(
        dict.fromkeys(
            ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"), resident
        )
        | dict.fromkeys(
            ("empty_cache", "reset_peak_memory_stats", "ipc_collect", "set_device", "synchronize"), nothing
        ),
        mem_get_info=free_and_total,
        get_rng_state=torch.get_rng_state,
        set_rng_state=torch.set_rng_state,
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
        get_device_name=lambda *_: "CPU",
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: torch.device("cpu"),
    )
    return module


class PlatformCPU(PlatformBase):
    """One CPU "device" per process, gloo between processes, ``GPU`` as the name of its slots in Ray."""

    _module = _cpu_module()

    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: self._module)

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        """Return whether verl may detect this platform, which it checks after NVIDIA, Huawei and AMD."""
        return not has_cuda()

    def is_available(self) -> bool:
        """Check the selected platform: raise an error on a machine with CUDA devices."""
        refuse_cuda("VERL_PLATFORM=cpu")
        return True

    def current_device(self) -> torch.device:
        """Return a device instead of an index as other platforms: verl passes it to ``Tensor.to``."""
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def ray_resource_name(self) -> str:
        """Return the resource by which verl schedules; ``ray start --num-gpus=N`` makes N slots without GPUs."""
        return os.environ.get("VERL_CPU_RAY_RESOURCE", "GPU")

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


def register() -> None:
    """Add the platform. verl checks platforms in the order of registration, so real ones come first."""
    PlatformRegistry.register(platform="cpu")(PlatformCPU)
