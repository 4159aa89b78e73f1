"""No signature matches the output of a successful run, and that output hides no cause of a later failure.

``good_logs/`` are real: the demo's run on the local Slurm cluster (two nodes, gloo; prepare, SFT, merge, Ray cluster,
three of Ray's own logs, PPO, merge, upload), and a training under torchrun on two H100s (torch 2.11, NCCL 2.28,
NCCL_DEBUG=INFO, TORCH_CPP_LOG_LEVEL=INFO); lines of SFT's tuner, on one H200, and on two CPU nodes where an injected
error stood for a setting that did not fit; PPO, and GRPO with LoRA, with vLLM on an H200. Repetitions of a line, the
ends of long lines and the path of Python were removed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_bridge.diagnosis.evidence import Evidence, LogLocation, request, with_answer
from llm_bridge.diagnosis.report import Diagnosis
from llm_bridge.diagnosis.rules import diagnose
from llm_bridge.diagnosis.signatures import TABLE, Signature
from llm_bridge.remote.login import evidence
from llm_bridge.remote.messages import EvidenceAnswer, decode, encode
from llm_bridge.slurm.status import JobInfo
from tests.unit.diagnosis.test_gpu_logs import CAUSES
from tests.unit.diagnosis.test_gpu_logs import LOGS as GPU_LOGS

LOGS = sorted((Path(__file__).parent / "good_logs").glob("*.log"))
# A Ray cluster ends by scancel: that line is a match, of a cascade.
EXPECTED = {"ray_cluster": {"slurm_cancelled"}}
SFT = (Path(__file__).parent / "good_logs" / "sft.log").read_text()
# Output before the failure. With NCCL, preflight.py prints this rate for two H100s of one host.
PREAMBLES = {
    "gloo": SFT,
    "nccl": SFT.replace("gloo all-reduce over 2 nodes: 0.5", "nccl all-reduce over 2 nodes: 3.3"),
}


# Built once: extracting the literals of all signatures takes longer than reading a log.
REQUEST = request(LogLocation("site", "12", "", ()), None)


def read(log: Path) -> EvidenceAnswer:
    """Return the helper's answer for one log."""
    asked = REQUEST._replace(directory=str(log.parent), logs=[str(log)])
    answer: EvidenceAnswer = decode(EvidenceAnswer, evidence.main(encode(asked)))
    return answer


def matches(log: Path) -> set[str]:
    """Ids of the signatures that the helper finds in a log."""
    return {match.id for match in read(log).found}


def failed(log: Path) -> Diagnosis:
    """The diagnosis of a Slurm job that failed with exit code 1 and this log."""
    info = JobInfo("12", "FAILED", exit_code=1, nodes="n[1-2]")
    return diagnose(with_answer(Evidence(job_id="12", info=info), read(log), ()))


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.stem)
def test_nothing_is_found_in_the_log_of_a_successful_run(log: Path) -> None:
    assert matches(log) == EXPECTED.get(log.stem, set())


@pytest.mark.parametrize(
    "line",
    [
        # preflight.py
        "[llm-bridge] preflight: gloo all-reduce over 2 nodes: 0.5 GiB/s a node",
        "[llm-bridge] preflight: nccl all-reduce over 64 nodes: 27.1 GiB/s a node",
        "[llm-bridge] preflight: nccl all-reduce over 64 nodes x 8 GPUs: 27.1 GiB/s",
        "[llm-bridge] preflight: nccl all-reduce over 1 node x 8 GPUs: 227.1 GiB/s",
        "[llm-bridge] preflight: warning: n1: GPU 3 (GPU-1d9f) had 2 uncorrectable memory errors since its last reset; "
        "a reset of the GPU ends this state",
        "[llm-bridge] preflight: 2 node(s) in order",
        "[llm-bridge] preflight: warning: n1: at most 1024 open files (ulimit -Hn)",
        "[llm-bridge] preflight: warning: n1: locked memory is limited to 65536 bytes (ulimit -Hl): InfiniBand wants "
        "it unlimited",
        # NCCL tries the next adapter, or continues
        "gpu95:34:39 [4] transport/net_ib.cc:208 NCCL WARN NET/IB : mlx5_0:1 Got async event : GID table change",
        "gpu95:34:39 [4] transport/net_ib.cc:84 NCCL WARN NET/IB : Got async event : client reregistration",
        "gpu95:34:39 [4] misc/ibvwrap.cc:94 NCCL WARN Call to ibv_open_device failed",
        "gpu95:34:39 [4] transport/net_ib.cc:430 NCCL WARN NET/IB : Unable to open device mlx5_2",
        "gpu95:34:39 [4] transport/net_ib.cc:452 NCCL WARN NET/IB : Unable to query port_num 1",
        "gpu95:34:39 [4] nccl_net_ofi_init:1444 NCCL WARN NET/OFI aws-ofi-nccl initialization failed",
        "gpu95:34:39 [4] NCCL INFO socketPollConnect: connect to 10.1.0.96<4711> returned Connection refused, retrying "
        "(1/34) after sleep for 100 msec",
        # torch
        "torch/cuda/__init__.py:174: UserWarning: CUDA initialization: The NVIDIA driver on your system is too old "
        "(found version 12020).",
        "torch/cuda/__init__.py:174: UserWarning: CUDA initialization: Unexpected error from cudaGetDeviceCount(). "
        "Error 35: CUDA driver version is insufficient for CUDA runtime version",
        "[W1125 10:00:00.1 TCPStore.cpp:125] [c10d] recvValue failed on SocketImpl(fd=3): Connection reset by peer",
        "W1125 10:00:00.1 4 torch/distributed/elastic/rendezvous/dynamic_rendezvous.py:1292] The node 'gpu95_4_0' has "
        "failed to shutdown the rendezvous '12' due to an error of type RendezvousConnectionError.",
        # Python at exit, from a destructor
        "ImportError: sys.meta_path is None, Python is likely shutting down",
        # HTTP
        'INFO:     10.1.0.95:51234 - "GET /metrics HTTP/1.1" 403 Forbidden',
        'INFO:httpx:HTTP Request: HEAD https://huggingface.co/x/resolve/main/a.json "HTTP/1.1 401 Unauthorized"',
        # the site's profile
        "/etc/profile.d/gpu.sh: line 3: nvidia-smi: command not found",
        "/home/svc/.bashrc: line 12: module: command not found",
        "ls: cannot access '/usr/local/cuda': No such file or directory",
        "cat: /proc/driver/nvidia/version: No such file or directory",
        "slurmstepd: Detected 0 oom_kill events in StepId=4711.0",
        # Ray
        "[2026-11-25 10:00:00,000 W 12 12] gcs_rpc_client.h:151: Failed to connect to GCS at address 10.1.0.95:20311 "
        "within 5 seconds.",
    ],
)
def test_a_message_of_a_program_that_continues_is_no_evidence(line: str, tmp_path: Path) -> None:
    """The lines are quoted from the programs: most need hardware or a site that the tests do not have."""
    log = tmp_path / "output.log"
    log.write_text("".join(f"{prefix}{line}\n" for prefix in ("", "[gpu95] ", "[gpu95] [rank0]: ")))
    assert matches(log) == set()


@pytest.mark.parametrize("preamble", PREAMBLES)
@pytest.mark.parametrize("signature", TABLE, ids=lambda signature: signature.id)
def test_output_from_before_the_failure_does_not_hide_its_cause(
    signature: Signature, preamble: str, tmp_path: Path
) -> None:
    log = tmp_path / "output.log"
    log.write_text(f"{PREAMBLES[preamble]}[n2] {signature.excerpt}\n")
    found = failed(log)
    last = len(log.read_text().splitlines())
    assert (found.kind, found.source) == (signature.kind, f"{log}:{last}"), found.evidence


@pytest.mark.parametrize("name", CAUSES)
def test_a_failure_on_gpus_is_explained_behind_a_real_preamble_too(name: str, tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    lines = (GPU_LOGS / f"{name}.log").read_text().splitlines()
    log.write_text(PREAMBLES["nccl"] + "".join(f"[n2] {line}\n" for line in lines))
    found = failed(log)
    kind, text = CAUSES[name]
    assert (found.kind, text in found.evidence) == (kind, True), found
