"""The table of signatures: every excerpt is found under its own class, and no similar line."""

from __future__ import annotations

import re

import pytest

from llm_bridge.diagnosis.classes import CLASSES
from llm_bridge.diagnosis.evidence import in_lines
from llm_bridge.diagnosis.signatures import BY_ID, TABLE, Signature
from llm_bridge.remote.login import evidence


def names(signature: Signature) -> str:
    return signature.id


def found(line: str) -> list[str]:
    """Return the ids of the signatures that match a line of a log, in the table's order."""
    text = evidence.split_prefix(line)[0]
    return [signature.id for signature in TABLE if re.search(signature.seen, text)]


@pytest.mark.parametrize("signature", TABLE, ids=names)
def test_every_excerpt_is_found_and_no_other_class_comes_first(signature: Signature) -> None:
    ids = found(signature.excerpt)
    assert signature.id in ids
    kinds = [s.kind for s in TABLE if s.id in ids and not s.cascade]
    assert set(kinds) <= {signature.kind}


@pytest.mark.parametrize("signature", TABLE, ids=names)
def test_a_similar_line_is_no_evidence(signature: Signature) -> None:
    assert found(signature.must_not_match) == []


@pytest.mark.parametrize(
    "line",
    [
        "Killed",
        # The kernel's log after a failed assertion in a CUDA kernel: the program's fault, not the GPU's.
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
    assert {signature.kind for signature in TABLE} <= set(CLASSES)


@pytest.mark.parametrize(
    "prefix",
    [
        "[gpu96] ",
        "[gpu96] [rank3]: ",
        "[gpu96] [default3]:",
        "[gpu96] [default3]:[rank3]: ",
        "[gpu96] \x1b[36m(TaskRunner pid=4242)\x1b[0m ",
        "1: ",
        " 1: [gpu96] [rank3]: ",
        "[trainer0]:",
        "[rank3]: ",
        "\x1b[36m(TaskRunner pid=4242)\x1b[0m ",
        "\x1b[36m(WorkerDict pid=4242, ip=10.1.0.96)\x1b[0m [rank3]: ",
        "\x1b[36m(WorkerDict pid=4242, ip=fd00::96)\x1b[0m ",
        "\x1b[33m(raylet, ip=10.1.0.96)\x1b[0m ",
        "\x1b[36m(Worker(rank=3) pid=4242)\x1b[0m ",
        "\x1b[36m(vLLMHttpServer pid=42, ip=10.1.0.96)\x1b[0m \x1b[1;36m(EngineCore_DP0 pid=43)\x1b[0;0m ",
    ],
)
def test_no_prefix_of_a_launcher_hides_a_line(prefix: str) -> None:
    hidden = [signature.id for signature in TABLE if signature.id not in found(prefix + signature.excerpt)]
    assert hidden == []


@pytest.mark.parametrize(
    "bracketed", ["[INFO] ", "[llm-bridge] ", "[ray] ", "[2026-11-26 02:29:39] ", "[1/4] "]
)
def test_brackets_around_anything_but_a_node_belong_to_the_line(bracketed: str) -> None:
    line = f"{bracketed}ModuleNotFoundError: No module named 'x', which is optional"
    assert found(line) == []
    assert evidence.split_prefix(line, ["gpu95", "gpu96"])[0] == line


def test_the_node_that_ran_low_on_memory_is_named_by_ray() -> None:
    nodes = {match.id: match.node for match in in_lines([BY_ID["ray_oom"].excerpt])}
    assert nodes["ray_oom"] == "10.1.0.96"


def test_bashs_message_about_a_killed_program_is_found() -> None:
    assert found(
        '/var/lib/slurm/slurmd/job00007/slurm_script: line 61:   215 Killed                  "$@"'
    ) == ["killed"]
