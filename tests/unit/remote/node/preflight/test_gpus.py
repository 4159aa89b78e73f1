"""Checks of the GPUs of one node, with stand-ins for nvidia-smi and for torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote.node.common import programs
from llm_bridge.remote.node.preflight import gpus, tensors

ONE = "echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1d9f5c4e)'"
TWO = f"{ONE}; echo 'GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2a77b1c0)'"


def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str, state: str = "exit 1") -> None:
    """Put a stand-in for nvidia-smi into PATH: shell commands for its options -L, and -q -x."""
    script = tmp_path / "nvidia-smi"
    script.write_text(f'#!/bin/sh\ncase "$*" in\n-L) {listing} ;;\n*) {state} ;;\nesac\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def torch_says(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Run a Python program in the place of the one that makes a tensor on each GPU."""
    monkeypatch.setattr(programs, "command", lambda *arguments: [sys.executable, "-c", program])


WORKS = "print('[]')"


def test_fewer_gpus_than_requested_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (fault,), _ = gpus.check(2, "cpu")
    assert "has 1 of 2 GPUs" in fault
    assert gpus.check(1, "cpu") == ([], [])


@pytest.mark.parametrize(
    ("listing", "faults"),
    [
        (TWO, []),
        # The driver has lost a GPU.
        (
            f"{ONE}; echo 'Unable to determine the device handle for GPU0000:3B:00.0: Unknown Error'; exit 15",
            [
                "the driver shows 1 of 2 GPUs: Unable to determine the device handle for GPU0000:3B:00.0: Unknown Error"
            ],
        ),
        (
            "echo 'Unable to determine the device handle for GPU1' >&2; exit 15",
            ["the driver shows 0 of 2 GPUs: Unable to determine the device handle for GPU1"],
        ),
        (
            "echo 'NVIDIA-SMI has failed because it couldn'\"'\"'t communicate with the driver.'; exit 9",
            [
                "the driver shows 0 of 2 GPUs: NVIDIA-SMI has failed because it couldn't communicate with the driver."
            ],
        ),
        # A line of a GPU that works is no cause.
        (ONE, ["the driver shows 1 of 2 GPUs"]),
        (f"{ONE}; echo '  MIG 1g.10gb     Device  0: (UUID: MIG-1)'", ["the driver shows 1 of 2 GPUs"]),
    ],
)
def test_a_driver_that_shows_too_few_gpus_is_a_fault_with_its_cause(
    listing: str, faults: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    nvidia_smi(tmp_path, monkeypatch, listing)
    torch_says(monkeypatch, WORKS)
    assert gpus.check(2, "cuda") == (faults, [])


@pytest.mark.parametrize(("listing", "state"), [("exec sleep 5", "exit 1"), (TWO, "exec sleep 5")])
def test_an_nvidia_smi_that_does_not_answer_is_a_fault(
    listing: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(gpus, "NVIDIA_SMI_TIMEOUT_SECONDS", 0.2)
    nvidia_smi(tmp_path, monkeypatch, listing, state)
    (fault,), _ = gpus.check(2, "cuda")
    assert fault.startswith("nvidia-smi does not answer within")


def test_an_nvidia_smi_that_cannot_even_be_killed_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is blocked in the driver does not end."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(gpus, "NVIDIA_SMI_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(programs, "KILL_SECONDS", 0.2)
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: None)
    nvidia_smi(tmp_path, monkeypatch, "exec sleep 60")
    began = time.monotonic()
    (fault,), _ = gpus.check(2, "cuda")
    assert fault.startswith("nvidia-smi does not answer within") and time.monotonic() - began < 50


def test_without_nvidia_smi_the_tensors_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("PATH", str(tmp_path))
    torch_says(monkeypatch, WORKS)  # AMD's GPUs, or a container without the driver's utilities
    faults, (warning,) = gpus.check(1, "cuda")
    assert faults == [] and "it has no nvidia-smi" in warning
    torch_says(monkeypatch, """print('["CUDA has 0 of 1 GPUs"]')""")
    (fault,), _ = gpus.check(1, "cuda")
    assert fault.startswith("CUDA has 0 of 1 GPUs (no nvidia-smi: no NVIDIA driver")


def test_a_gpu_that_takes_no_tensor_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    nvidia_smi(tmp_path, monkeypatch, TWO)
    torch_says(monkeypatch, """print('["GPU 1 of the job does not work: CUDA error: out of memory"]')""")
    assert gpus.check(2, "cuda")[0] == ["GPU 1 of the job does not work: CUDA error: out of memory"]
    torch_says(monkeypatch, "import nothing_like_torch")
    (fault,), _ = gpus.check(2, "cuda")
    assert fault == "torch cannot use the GPUs: ModuleNotFoundError: No module named 'nothing_like_torch'"
    torch_says(monkeypatch, "import os; os.abort()")
    assert gpus.check(2, "cuda")[0] == ["torch cannot use the GPUs: exit code -6"]
    monkeypatch.setattr(gpus, "TENSORS_TIMEOUT_SECONDS", 0.2)
    torch_says(monkeypatch, "import time; time.sleep(5)")
    (fault,), _ = gpus.check(2, "cuda")
    assert "is not done within 0.2 s: a GPU hangs" in fault


@pytest.mark.parametrize(
    ("visible", "names"), [("7", "7"), ("GPU-ffff", "GPU-ffff"), ("0,GPU-1d9f,9", "9"), ("MIG-1", "")]
)
def test_a_wrong_entry_of_cuda_visible_devices_is_named(
    visible: str, names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvidia_smi(tmp_path, monkeypatch, ONE)
    torch_says(monkeypatch, """print('["CUDA has 0 of 1 GPUs: No CUDA GPUs are available"]')""")
    (fault,), _ = gpus.check(1, "cuda")
    wrong = f"CUDA_VISIBLE_DEVICES={visible} names {names}, but the driver has 0 (GPU-1d9f5c4e): "
    assert fault == (wrong if names else "") + "CUDA has 0 of 1 GPUs: No CUDA GPUs are available"


class Cuda:
    """Stand-in for torch.cuda with two GPUs, the second of which may be broken."""

    def __init__(self, visible: int = 2, error: str = "") -> None:
        self.visible, self.error = visible, error

    def device_count(self) -> int:
        return self.visible

    def init(self) -> None:
        raise RuntimeError(self.error)


class Ones:
    """Stand-in for a tensor."""

    def __init__(self, total: float) -> None:
        self.total = total

    def sum(self) -> Ones:
        return self

    def item(self) -> float:
        return self.total


@pytest.mark.parametrize(
    ("cuda", "second", "expected"),
    [
        (Cuda(), 1024.0, []),
        (
            Cuda(),
            "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be",
            ["GPU 1 of the job does not work: CUDA error: uncorrectable ECC error encountered"],
        ),
        (Cuda(), 1023.0, ["GPU 1 of the job computes wrongly: 1023.0 instead of 1024"]),
        (Cuda(0, "No CUDA GPUs are available"), 0.0, ["CUDA has 0 of 2 GPUs: No CUDA GPUs are available"]),
        (
            Cuda(0, "The NVIDIA driver on your system is too old (found version 12020)."),
            0.0,
            ["CUDA has 0 of 2 GPUs: The NVIDIA driver on your system is too old (found version 12020)."],
        ),
    ],
)
def test_every_visible_gpu_gets_a_tensor(cuda: Cuda, second: float | str, expected: list[str]) -> None:
    made = []

    def ones(count: int, device: str) -> Any:
        made.append(device)
        if device == "cuda:0":
            return Ones(count)
        if isinstance(second, str):
            raise RuntimeError(second)
        return Ones(second)

    assert tensors.faults(cuda, ones, 2) == expected
    assert made == (["cuda:0", "cuda:1"] if cuda.visible else [])


def state(*gpus_: str) -> str:
    """Output of ``nvidia-smi -q -x``, in parts (driver 580, H100)."""
    return f"<nvidia_smi_log><driver_version>580.159.04</driver_version>{''.join(gpus_)}</nvidia_smi_log>"


def gpu(
    uuid: str = "GPU-1d9f5c4e",
    action: str = "None",
    pending: str = "No",
    failure: str = "No",
    retired: str = "N/A",
    errors: str = "0",
    more: str = "",
) -> str:
    return f"""
    <gpu id="00000000:3B:00.0">
        <product_name>NVIDIA H100 80GB HBM3</product_name>
        <uuid>{uuid}</uuid>
        <gpu_reset_status>
            <reset_required>Requested functionality has been deprecated</reset_required>
        </gpu_reset_status>
        <gpu_recovery_action>{action}</gpu_recovery_action>
        <ecc_errors>
            <volatile>
                <sram_correctable>3</sram_correctable>
                <sram_uncorrectable_parity>0</sram_uncorrectable_parity>
                <sram_uncorrectable_secded>0</sram_uncorrectable_secded>
                <dram_correctable>0</dram_correctable>
                <dram_uncorrectable>{errors}</dram_uncorrectable>
            </volatile>
            <aggregate><dram_uncorrectable>71</dram_uncorrectable></aggregate>
        </ecc_errors>
        <retired_pages>
            <pending_blacklist>{retired}</pending_blacklist>
            <pending_retirement>{retired}</pending_retirement>
        </retired_pages>
        <remapped_rows>
            <remapped_row_corr>0</remapped_row_corr>
            <remapped_row_unc>1</remapped_row_unc>
            <remapped_row_pending>{pending}</remapped_row_pending>
            <remapped_row_failure>{failure}</remapped_row_failure>
        </remapped_rows>{more}
    </gpu>"""


# A GPU before Turing, and a driver without the newer elements.
OLD = """
    <gpu id="00000000:06:00.0">
        <uuid>GPU-0d</uuid>
        <ecc_errors><volatile>
            <single_bit><total>4</total></single_bit>
            <double_bit><device_memory>2</device_memory><total>2</total></double_bit>
        </volatile></ecc_errors>
    </gpu>"""


@pytest.mark.parametrize(
    ("xml", "fault", "warning"),
    [
        (state(gpu()), "", ""),
        (state(gpu(action="N/A", errors="N/A")), "", ""),
        (state(gpu(action="Reset")), "GPU 0 (GPU-1d9f5c4e) must recover from an error by 'Reset'", ""),
        (state(gpu(action="Drain and Reset")), "by 'Drain and Reset' (gpu_recovery_action", ""),
        (state(gpu(action="A later driver's value")), "", ""),
        (state(gpu(more="<pstate>GPU requires reset</pstate>")), "requires a reset", ""),
        (state(gpu(failure="Yes")), "cannot be remapped", ""),
        (state(gpu(retired="Yes")), "until it is reset", ""),
        (state(gpu(pending="Yes")), "", "waits to be remapped; a reset of the GPU"),
        (state(gpu(errors="32")), "", "had 32 uncorrectable memory errors"),
        (state(OLD), "", "GPU 0 (GPU-0d) had 2 uncorrectable memory errors"),
        (state(gpu(), gpu("GPU-2a77b1c0", action="Reboot")), "GPU 1 (GPU-2a77b1c0) must", ""),
        ("Failed to initialize NVML: Driver/library version mismatch", "", ""),
        ("", "", ""),
    ],
)
def test_the_state_of_a_gpu_is_a_fault_a_warning_or_neither(xml: str, fault: str, warning: str) -> None:
    faults, warnings = gpus.health(xml, None)
    assert len(faults) == bool(fault) and len(warnings) == bool(warning)
    assert fault in "".join(faults) and warning in "".join(warnings)


@pytest.mark.parametrize(
    ("visible", "counts"),
    [
        ("0", False),
        ("1", True),
        ("GPU-2a77", True),
        ("GPU-1d9f5c4e", False),
        ("0,1", True),
        (None, True),
        ("MIG-7", True),
    ],
)
def test_only_the_jobs_own_gpus_count(visible: str | None, counts: bool) -> None:
    xml = state(gpu(), gpu("GPU-2a77b1c0", failure="Yes"))
    assert bool(gpus.health(xml, visible)[0]) is counts


def test_the_state_of_the_gpus_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state.xml").write_text(state(gpu(failure="Yes", pending="Yes")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    nvidia_smi(tmp_path, monkeypatch, ONE, f"cat {tmp_path}/state.xml")
    torch_says(monkeypatch, WORKS)
    (fault,), (warning,) = gpus.check(1, "cuda")
    assert "cannot be remapped" in fault and "waits to be remapped" in warning
