"""Check the GPUs of one node: the allocation, the driver, their health, and a small tensor on each of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

from llm_bridge.remote.node.common import programs
from llm_bridge.remote.node.ray import node_setup

NVIDIA_SMI_TIMEOUT_SECONDS = 60  # nvidia-smi hangs when a GPU has fallen off the bus
TENSORS_TIMEOUT_SECONDS = 180  # importing torch from a cold file system takes minutes
# "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1d9f...)", and below it lines of MIG devices.
LISTED = re.compile(r"GPU (?P<index>\d+): .*?(\(UUID: (?P<uuid>[^)]+)\))?$")
# nvidia-smi's gpu_recovery_action (driver 565 and newer), the state after an Xid error; None and N/A are the others.
RECOVERY_ACTIONS = ("Reset", "Reboot", "Drain P2P", "Drain and Reset")

NO_NVIDIA_SMI = "no nvidia-smi: no NVIDIA driver, or a container without --nv or utility"

# Number and UUID of each GPU that the driver lists.
Listed = dict[str, str]


class NoAnswer(Exception):
    """nvidia-smi cannot be used on this node; the text continues a sentence that starts with the node's name."""


def check(count: int, device: str) -> tuple[list[str], list[str]]:
    """Check that this node has the job's GPUs, and that each of them works.

    Args:
        count: Required number of GPUs.
        device: ``cuda``; any other device skips all checks but the allocation's.

    Returns:
        Faults and warnings.
    """
    try:
        node_setup.usable_gpus(dict(os.environ), count)
        if device != "cuda":
            return [], []
        if shutil.which("nvidia-smi") is None:
            # Not a fault by itself: AMD's GPUs have none, nor has a container for computing only (compute without
            # utility in NVIDIA_DRIVER_CAPABILITIES). The tensors tell.
            if faults := _tensors(count, {}):
                return [f"{faults[0]} ({NO_NVIDIA_SMI})", *faults[1:]], []
            return [], [f"it has {NO_NVIDIA_SMI}: the state of its GPUs is not checked"]
        faults, listed = _driver(count)
        if faults:
            return faults, []
        faults, warnings = health(_nvidia_smi("-q", "-x").stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))
    except (node_setup.NodeProblem, NoAnswer) as problem:
        return [str(problem)], []
    return faults or _tensors(count, listed), warnings


def _nvidia_smi(*options: str) -> subprocess.CompletedProcess[str]:
    try:
        return programs.run(["nvidia-smi", *options], NVIDIA_SMI_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise NoAnswer(
            f"nvidia-smi does not answer within {NVIDIA_SMI_TIMEOUT_SECONDS} s: a GPU hangs"
        ) from None


def _driver(count: int) -> tuple[list[str], Listed]:
    """Return what is wrong with the driver's list of GPUs, and the list."""
    done = _nvidia_smi("-L")
    lines = [line.strip() for line in [*done.stderr.splitlines(), *done.stdout.splitlines()]]
    matches = {line: LISTED.match(line) for line in lines}
    listed = {match["index"]: match["uuid"] or "" for match in matches.values() if match}
    if not done.returncode and len(listed) >= count:
        return [], listed
    causes = [line for line, match in matches.items() if line and not match and not line.startswith("MIG ")]
    cause = f": {causes[-1]}" if causes else ""
    return [f"the driver shows {len(listed)} of {count} GPUs{cause}"], listed


def health(xml: str, visible: str | None) -> tuple[list[str], list[str]]:
    """Return the faults and warnings in the state of the job's GPUs.

    A GPU does not use a memory row that waits to be remapped, and works after an uncorrectable error: these are
    warnings. A page that waits to be retired (before Ampere) is still in use, a row that cannot be remapped stays
    faulty, and after some Xid errors the driver requires a reset: these are faults.

    Args:
        xml: Output of ``nvidia-smi -q -x``. Elements that a driver or a GPU does not have are no fault.
        visible: ``CUDA_VISIBLE_DEVICES``; other GPUs than these are skipped. None means all GPUs.
    """
    try:
        gpus = dict(enumerate(ElementTree.fromstring(xml).findall("gpu")))  # in the order of their numbers
    except ElementTree.ParseError:
        return [], []
    entries = _entries(visible)
    own = {
        number: gpu
        for number, gpu in gpus.items()
        if any(_names(entry, str(number), gpu.findtext("uuid", "")) for entry in entries)
    }
    faults, warnings = [], []
    for number, gpu in (own or gpus).items():
        name = f"GPU {number} ({gpu.findtext('uuid', 'no UUID')})"
        faults += [f"{name} {text}: its node needs an administrator" for text in _faults(gpu)]
        warnings += [f"{name} {text}; a reset of the GPU ends this state" for text in _warnings(gpu)]
    return faults, warnings


def _faults(gpu: ElementTree.Element) -> Iterator[str]:
    action = gpu.findtext("gpu_recovery_action", "")
    if action in RECOVERY_ACTIONS:
        yield f"must recover from an error by {action!r} (gpu_recovery_action of nvidia-smi -q)"
    elif any("requires reset" in text.lower() for text in gpu.itertext()):
        yield "requires a reset (nvidia-smi -q)"
    if _is_yes(gpu, "remapped_rows/remapped_row_failure"):
        yield "has a faulty memory row that cannot be remapped (remapped_row_failure of nvidia-smi -q)"
    if _is_yes(gpu, "retired_pages/pending_retirement") or _is_yes(gpu, "retired_pages/pending_blacklist"):
        yield "uses a faulty memory page until it is reset (pending_retirement of nvidia-smi -q)"


def _warnings(gpu: ElementTree.Element) -> Iterator[str]:
    if _is_yes(gpu, "remapped_rows/remapped_row_pending"):
        yield "has a faulty memory row that waits to be remapped"
    volatile = gpu.find("ecc_errors/volatile")
    counts = [
        int(element.text or 0)
        for element in (volatile.iter() if volatile is not None else ())
        # sram_uncorrectable_parity, dram_uncorrectable ...; before Turing double_bit/total.
        if "uncorrectable" in element.tag and (element.text or "").strip().isdigit()
    ]
    double_bit = gpu.findtext("ecc_errors/volatile/double_bit/total", "")
    if errors := sum(counts) + int(double_bit if double_bit.isdigit() else 0):
        yield f"had {errors} uncorrectable memory errors since its last reset"


def _is_yes(gpu: ElementTree.Element, path: str) -> bool:
    return gpu.findtext(path, "").strip() == "Yes"


def _entries(visible: str | None) -> list[str]:
    return [entry.strip() for entry in (visible or "").split(",") if entry.strip()]


def _names(entry: str, number: str, uuid: str) -> bool:
    """Return True if an entry of CUDA_VISIBLE_DEVICES names a GPU, by its number or the beginning of its UUID."""
    return entry == number or (entry.startswith("GPU-") and uuid.startswith(entry))


def _tensors(count: int, listed: Listed) -> list[str]:
    """Make a small tensor on every visible GPU, in a process of its own, which a broken GPU may hang or abort."""
    command = programs.command("preflight-tensors", str(count))
    try:
        done = programs.run(command, TENSORS_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return [f"a small tensor on each GPU is not done within {TENSORS_TIMEOUT_SECONDS} s: a GPU hangs"]
    if done.returncode:
        output = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return [
            f"torch cannot use the GPUs: {output[-1][:500] if output else f'exit code {done.returncode}'}"
        ]
    faults: list[str] = json.loads(done.stdout.splitlines()[-1])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # Names of MIG devices are not in the list.
    unknown = [
        entry
        for entry in _entries(visible)
        if not entry.startswith("MIG") and not any(_names(entry, *gpu) for gpu in listed.items())
    ]
    if listed and faults and unknown:
        known = ", ".join(f"{number} ({uuid})" for number, uuid in listed.items())
        return [
            f"CUDA_VISIBLE_DEVICES={visible} names {', '.join(unknown)}, but the driver has {known}: {faults[0]}"
        ]
    return faults
