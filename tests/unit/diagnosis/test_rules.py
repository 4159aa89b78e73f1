"""From evidence to a diagnosis: precedence of the evidence, and every class at least once."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.diagnosis.classes import CLASSES
from llm_bridge.diagnosis.evidence import Evidence, SignatureMatch, with_answer
from llm_bridge.diagnosis.report import Diagnosis
from llm_bridge.diagnosis.rules import diagnose
from llm_bridge.diagnosis.signatures import BY_ID
from llm_bridge.remote.attempt_dir import Reason
from llm_bridge.remote.messages import EvidenceAnswer
from llm_bridge.slurm.accounting import Accounting
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


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("PREEMPTED", "preempted"),
        ("NODE_FAIL", "node_failure"),
        ("BOOT_FAIL", "node_failure"),
        ("TIMEOUT", "time_limit"),
        ("OUT_OF_MEMORY", "host_oom"),
        ("CANCELLED", "cancelled"),
    ],
)
def test_slurms_state_takes_precedence_over_the_log(state: str, kind: str) -> None:
    assert failed(info=info(state), found=seen("torch_cuda_oom")).kind == kind


def test_the_user_that_cancelled_is_named() -> None:
    cancelled = Accounting("CANCELLED by 1001")
    found = failed(info=info("CANCELLED"), accounting=cancelled, users={"1001": "alice"})
    assert found.evidence == "alice (uid 1001) cancelled Slurm job 7" and found.source == "sacct"


def test_a_preemption_that_shows_as_cancelled_is_recognised_by_slurms_line_in_the_log() -> None:
    assert failed(info=info("CANCELLED"), found=seen("slurm_preempted")).kind == "preempted"


def test_the_end_of_a_ray_cluster_is_no_cause_of_a_failure_on_it() -> None:
    """The cluster ends by scancel, however its jobs ended; its log is read beside the job's."""
    matches = seen("python") + seen("slurm_cancelled", order=1)
    found = failed(info=None, is_ray=True, driver_exit_code=1, found=matches)
    assert (found.kind, found.evidence) == ("unknown", BY_ID["python"].excerpt)
    lost = failed(info=None, is_ray=True, cluster_ended=True, found=seen("slurm_cancelled"))
    assert lost.kind == "cancelled"


def test_the_node_that_failed_is_named_and_the_others_are_not_blamed() -> None:
    lost = info("NODE_FAIL", nodes="n[1-2]")
    assert failed(info=lost, down=("n2",)).node == "n2"
    line = (SignatureMatch("slurm_node", "srun: error: Node failure on n2", LOG, 3, "n2"),)
    assert failed(info=lost, found=line).node == "n2"
    assert failed(info=lost).node is None
    assert failed(info=info("NODE_FAIL", nodes="n3")).node == "n3"


def test_a_time_limit_that_ended_an_idle_job_was_a_hang() -> None:
    idle = Accounting("TIMEOUT", elapsed=3600, cpu_seconds=0.5)
    assert failed(info=info("TIMEOUT"), accounting=idle).kind == "hang"
    assert failed(info=info("TIMEOUT"), accounting=idle, trains=True, before=3, step=9).kind == "time_limit"
    busy = Accounting("TIMEOUT", elapsed=3600, cpu_seconds=3000)
    assert failed(info=info("TIMEOUT"), accounting=busy).kind == "time_limit"


def test_a_step_that_ran_out_of_memory_counts_although_the_job_says_failed() -> None:
    found = failed(accounting=Accounting("FAILED", oom_step="7.0", max_rss=2**30, node_mem=2**30))
    assert found.kind == "host_oom" and "MaxRSS 1.00 GiB of 1.00 GiB" in found.evidence


def test_a_kill_at_full_memory_is_out_of_memory_and_any_other_kill_is_not() -> None:
    killed = info(signal=9)
    assert failed(info=killed, accounting=Accounting("FAILED", max_rss=95, node_mem=100)).kind == "host_oom"
    assert failed(info=killed, accounting=Accounting("FAILED", max_rss=10, node_mem=100)).kind == "unknown"


def test_the_first_root_cause_counts_and_not_the_last_cascade() -> None:
    found = failed(found=seen("nccl_watchdog", "torch_cuda_oom", "torchrun", "ray_actor_died"))
    assert found.kind == "cuda_oom" and found.source == f"{LOG}:20"
    assert failed(found=seen("no_space", "torch_cuda_oom")).kind == "disk_full"


def test_a_cascade_counts_where_nothing_else_explains_it() -> None:
    assert failed(found=seen("torchrun", "nccl_watchdog")).kind == "network"
    assert failed(found=seen("torchrun", "killed")).kind == "unknown"


def test_the_drivers_own_log_comes_before_those_of_its_cluster() -> None:
    both = (*seen("ray_disk", order=2), *seen("hydra", order=0))
    assert failed(found=both).kind == "bad_config"


@pytest.mark.parametrize(
    ("reason", "kind", "node"),
    [
        (Reason("verl refuses a setting of the recipe: x", retry=False), "bad_config", None),
        (Reason("no such column", retry=False), "bad_config", None),
        (Reason("x", kind="missing_path"), "missing_path", None),
        (Reason("preflight: n2: the driver shows 7 of 8 GPUs", nodes=("n2",), kind="preflight"),
         "gpu_hardware", "n2"),
        (Reason("preflight: n2: its clock is off", nodes=("n2",), kind="preflight"), "bad_node", "n2"),
        (Reason("worker n2 died", nodes=("n2",), kind="worker_dead"), "node_failure", "n2"),
        (Reason("1 of 2 nodes did not join within 3 minutes: n2", nodes=("n2",), kind="not_ready"),
         "ray_bring_up", "n2"),
        (Reason("n1: its disk is full", nodes=("n1",)), "bad_node", "n1"),
    ],
)  # fmt: skip
def test_the_jobs_own_reason_names_class_and_nodes(reason: Reason, kind: str, node: str | None) -> None:
    found = failed(reason=reason, found=seen("nccl_watchdog"))
    assert (found.kind, found.node, found.source) == (kind, node, "reason.json")


def test_a_ray_node_that_died_of_a_cause_in_the_log_is_no_node_failure() -> None:
    reason = Reason("worker n2 died", nodes=("n2",), kind="worker_dead")
    assert failed(reason=reason, found=seen("ray_oom")).kind == "host_oom"


def test_rays_error_type_explains_a_job_that_it_could_not_start() -> None:
    found = failed(
        info=None, is_ray=True, ray_error_type="RUNTIME_ENV_SETUP_FAILURE", ray_message="pip failed"
    )
    assert (found.kind, found.source) == ("environment", "Ray") and "pip failed" in found.evidence


def test_a_missing_command_is_recognised_by_its_exit_code() -> None:
    assert failed(info=info(exit_code=127), last_line="exec: nope").kind == "environment"
    assert failed(info=None, is_ray=True, driver_exit_code=127).kind == "environment"


def test_the_exit_code_of_a_step_counts_where_the_batch_script_returned_another() -> None:
    missing = failed(
        accounting=Accounting("FAILED", exit_code="1:0", derived="127:0"), last_line="exec: nope"
    )
    assert missing.kind == "environment" and missing.evidence.startswith("exit code 127")
    killed = Accounting("FAILED", exit_code="1:0", derived="0:9", max_rss=95, node_mem=100)
    assert failed(accounting=killed).kind == "host_oom"


def test_a_full_disk_is_noticed_without_a_line_in_the_log() -> None:
    assert failed(full="Disk quota exceeded").kind == "disk_full"


def test_limits_and_hangs_that_llm_bridge_acted_on_come_first() -> None:
    assert failed(info=None, timed_out=True).kind == "task_limit"
    assert failed(info=None, hung=True, notice="hang: no output for 30 min").kind == "hang"
    # Another triggerer ended it, and recorded that in the reason file.
    reason = Reason("hang: no output for 30 min", kind="hang")
    found = failed(info=info("CANCELLED"), reason=reason)
    assert (found.kind, found.evidence) == ("hang", reason.reason)
    assert failed(info=None, forgotten=True, notice="Slurm has lost job 7: ...").kind == "forgotten"


def test_an_allocation_that_was_requeued_was_preempted_unless_accounting_has_another_state() -> None:
    back = info("PENDING")
    assert failed(info=back).kind == "preempted"
    assert failed(info=back, accounting=Accounting("PENDING", earlier=("NODE_FAIL",))).kind == "node_failure"


def test_without_any_evidence_it_is_unknown_with_the_last_line() -> None:
    found = failed(last_line="the end")
    assert (found.kind, found.evidence) == ("unknown", "the end")


def test_gpu_hours_are_counted_from_start_to_end_and_those_since_the_checkpoint_are_lost() -> None:
    found = failed(gpus=16, trains=True, started=1000.0, ended=4600.0, saved_at=2800.0, step=40)
    assert (found.gpu_hours, found.lost_gpu_hours, found.step) == (16.0, 8.0, 40)
    assert failed(gpus=16, trains=True, started=1000.0, ended=4600.0).lost_gpu_hours == 16.0
    old = failed(gpus=16, trains=True, started=1000.0, ended=4600.0, saved_at=900.0, step=40)
    assert old.lost_gpu_hours == 16.0


def test_gpu_hours_are_known_of_another_tasks_job_and_of_a_driver_that_was_killed() -> None:
    answer = EvidenceAnswer(submitted=1000.0, ended=4600.0)
    driver = with_answer(Evidence(gpus=8, is_ray=True), answer, ())
    assert diagnose(driver).gpu_hours == 8.0
    sensors = with_answer(Evidence(accounting=Accounting("FAILED", elapsed=3600, gpus=16)), answer, ())
    assert diagnose(sensors).gpu_hours == 16.0
    never = with_answer(Evidence(gpus=8), answer, ())  # in the queue from its submission on
    assert diagnose(never).gpu_hours is None


def test_every_signatures_class_is_diagnosed_from_its_excerpt() -> None:
    for signature in BY_ID.values():
        assert failed(found=seen(signature.id)).kind == signature.kind
        assert signature.kind in CLASSES


def test_a_job_that_only_points_at_its_output_is_diagnosed_from_that() -> None:
    reason = Reason("verl.model_merger failed with exit code 1 (its output is above)", retry=False)
    assert failed(reason=reason, found=seen("no_space")).kind == "disk_full"


def test_a_dead_ray_node_keeps_the_name_that_the_guard_gives_it() -> None:
    reason = Reason(f"worker n2 died ({BY_ID['ray_node_dead'].excerpt})", nodes=("n2",), kind="worker_dead")
    found = failed(reason=reason, found=seen("ray_node_dead"))
    assert (found.kind, found.node) == ("node_failure", "n2")
    assert failed(reason=reason, found=seen("ray_node_dead", "ray_oom")).kind == "node_failure"
