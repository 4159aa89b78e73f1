"""Logs of trainings that failed on GPUs (torch 2.11, NCCL 2.28).

Those of the rollout engine are from benchmarks/gpu_trial.py on H200s (vLLM 0.24; it crashed because a library of the
environment had been overwritten meanwhile), the others from
benchmarks/failures_report/gpu_causes.py on two H100s.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_bridge.diagnosis.evidence import Evidence, LogLocation, request, with_answer
from llm_bridge.diagnosis.rules import diagnose
from llm_bridge.remote.login import evidence
from llm_bridge.remote.messages import EvidenceAnswer, decode, encode
from llm_bridge.slurm.status import JobInfo
from testing.paths import ROOT

LOGS = ROOT / "testing" / "gpu_logs"
FAILED = JobInfo("4711", "FAILED", exit_code=1)

CAUSES = {
    "cuda_oom_on_one_rank": ("cuda_oom", "CUDA out of memory. Tried to allocate 40.00 GiB. GPU 1"),
    "one_rank_stops": ("network", "Watchdog caught collective operation timeout"),
    "one_rank_is_killed": ("unknown", "exitcode  : -9"),
    "no_such_interface": ("bad_config", "no socket interface found"),
    "two_ranks_on_one_gpu": ("bad_config", "Duplicate GPU detected"),
    "gpu_that_is_not_there": ("bad_config", "invalid device ordinal"),
    "no_gpu_at_all": ("environment", "No CUDA GPUs are available"),
    "token_outside_of_the_vocabulary": ("bad_config", "Assertion `srcIndex < srcSelectDimSize` failed"),
    "index_out_of_bounds": ("bad_config", "index out of bounds"),
    "rollout_engine_without_a_package": ("environment", "No module named 'flashinfer'"),
    "rollout_engine_crashes": ("unknown", "!!!!!!! Segfault encountered !!!!!!!"),
    "nobody_answers": ("network", "The client socket has timed out after 8000ms"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause_of_a_failure_on_gpus_is_found_in_the_complete_log(name: str, tmp_path: Path) -> None:
    location = LogLocation("site", "4711", str(tmp_path), (str(LOGS / f"{name}.log"),))
    answer = decode(EvidenceAnswer, evidence.main(encode(request(location, None))))
    diagnosis = diagnose(with_answer(Evidence(job_id="4711", info=FAILED), answer, ()))
    kind, line = CAUSES[name]
    assert (diagnosis.kind, line in diagnosis.evidence) == (kind, True), diagnosis


def test_no_log_is_without_a_test() -> None:
    assert {log.stem for log in LOGS.glob("*.log")} == set(CAUSES)
