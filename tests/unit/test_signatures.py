"""The table of signatures: every excerpt is found under its own class, every look-alike is passed over."""

from __future__ import annotations

import re

import pytest

from llm_bridge.failures.evidence import in_lines
from llm_bridge.failures.kinds import KINDS
from llm_bridge.failures.signatures import BY_ID, TABLE, Signature
from tests.unit.login import load

evidence = load("evidence")


def names(signature: Signature) -> str:
    return signature.id


def found(line: str) -> list[str]:
    """Ids of the signatures that match a line as it stands in a log, in the table's order."""
    text = evidence.bare(line)
    return [signature.id for signature in TABLE if re.search(signature.seen, text)]


@pytest.mark.parametrize("signature", TABLE, ids=names)
def test_every_excerpt_is_found_and_no_other_class_comes_first(signature: Signature) -> None:
    ids = found(signature.excerpt)
    assert signature.id in ids
    kinds = [s.kind for s in TABLE if s.id in ids and not s.cascade]
    assert set(kinds) <= {signature.kind}


@pytest.mark.parametrize("signature", TABLE, ids=names)
def test_a_line_that_only_looks_alike_is_no_evidence(signature: Signature) -> None:
    assert found(signature.must_not_match) == []


@pytest.mark.parametrize(
    "line",
    [
        "Killed",
        # What a failed assertion in a kernel leaves in the kernel's log: the program's fault, not the GPU's.
        "[  175.786138] NVRM: Xid (PCI:0000:00:06): 43, pid=1067, name=python3, channel 0x0000000a",
        "gpu95:983:983 [0] NCCL INFO NCCL version 2.27.5+cuda12.9",
        "CUDA kernel errors might be asynchronously reported at some other API call",
        "[rank0]:[I1125 ProcessGroupNCCL.cpp:1196] NCCL watchdog thread started!",
        "step:12 - actor/pg_loss:0.01 - perf/max_memory_allocated_gb:61.2",
        "export NCCL_DEBUG=WARN",
    ],
)
def test_advice_and_information_are_no_evidence(line: str) -> None:
    assert found(line) == []


def test_a_dead_ray_node_is_named() -> None:
    signature = next(signature for signature in TABLE if signature.id == "ray_node_dead")
    named = re.search(signature.seen, signature.excerpt)
    assert named and named.group("node") == "gpu96"


def test_ids_are_unique_and_classes_exist() -> None:
    assert len({signature.id for signature in TABLE}) == len(TABLE)
    assert {signature.kind for signature in TABLE} <= set(KINDS)


def test_prefixes_of_ray_srun_and_torchrun_and_colours_do_not_hide_a_line() -> None:
    error = "ModuleNotFoundError: No module named 'flash_attn'"
    for line in (
        f"\x1b[36m(TaskRunner pid=4242)\x1b[0m {error}",
        f"\x1b[36m(WorkerDict pid=4242, ip=10.1.0.96)\x1b[0m {error}",
        f"[rank3]: {error}",
        f"1: {error}",
    ):
        assert "python_import" in found(line), line


def test_ray_names_the_node_that_ran_low_on_memory() -> None:
    nodes = {match.id: match.node for match in in_lines([BY_ID["ray_oom"].excerpt])}
    assert nodes["ray_oom"] == "10.1.0.96"


def test_what_bash_says_of_a_killed_program_is_told_with_what_to_look_at() -> None:
    assert found(
        '/var/lib/slurm/slurmd/job00007/slurm_script: line 61:   215 Killed                  "$@"'
    ) == ["killed"]
