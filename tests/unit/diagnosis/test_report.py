"""A diagnosis as text, and as JSON in XCom."""

from __future__ import annotations

from typing import Any

from llm_bridge.diagnosis.evidence import Evidence, SignatureMatch
from llm_bridge.diagnosis.report import Diagnosis, titled
from llm_bridge.diagnosis.rules import diagnose
from llm_bridge.diagnosis.signatures import BY_ID
from llm_bridge.remote.attempt_dir import Reason
from llm_bridge.slurm.status import JobInfo

LOG = "/w/sft/attempt-1/output.log"


def info(state: str = "FAILED", nodes: str = "n1", **more: Any) -> JobInfo:
    return JobInfo("7", state, nodes=nodes, **more)


def seen(*ids: str, order: int = 0) -> tuple[SignatureMatch, ...]:
    """Excerpts of the table, in this order in one log."""
    return tuple(
        SignatureMatch(name, BY_ID[name].excerpt, LOG, 10 * number, None, order)
        for number, name in enumerate(ids, 1)
    )


def failed(**fields: Any) -> Diagnosis:
    return diagnose(Evidence(**{"job_id": "7", "info": info(exit_code=1), **fields}))


def test_evidence_is_one_line() -> None:
    assert failed(reason=Reason("first\nsecond", kind="missing_path")).evidence == "first second"


def test_a_diagnosis_is_read_back_from_an_xcom_of_a_newer_version() -> None:
    found = failed(found=seen("xid"), try_number=2, max_tries=3)
    assert Diagnosis.from_dict({**found.as_dict(), "new": 1}) == found
    assert "Cause: gpu_hardware (a GPU is broken" in found.text() and "What to do: " in found.text()


def test_the_text_has_what_is_known_and_no_empty_line() -> None:
    short = titled("unknown", "the end", advice="Read the log.")
    assert (
        short.text()
        == "Cause: unknown (no known cause was found)\nEvidence: the end\nWhat to do: Read the log."
    )
    full = titled("hang", "silent", node="n1, n2", source="sacct", step=40, gpu_hours=12.5, lost_gpu_hours=1.2,
                  next_action="retries at once")  # fmt: skip
    assert full.nodes == ("n1", "n2") and "Evidence: silent (sacct)\nNode: n1, n2\n" in full.text()
    assert (
        "step 40\nGPU-hours of this attempt: 12.50, of which 1.20 are not saved in a checkpoint\n"
        in full.text()
    )
    assert full.text().endswith("\nNext: retries at once")
