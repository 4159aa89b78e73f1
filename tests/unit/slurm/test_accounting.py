"""Accounting as sacct prints it."""

from __future__ import annotations

import pytest

from llm_bridge.slurm import accounting
from llm_bridge.slurm.accounting import Row, parse_seconds, parse_size, rows, summarize
from llm_bridge.slurm.status import Phase

TIMES = "2026-11-23T08:30:24|2026-11-23T08:30:26|2026-11-23T08:31:26"
TRES = "billing=2,cpu=2,mem=8G,node=2"
TEXT = f"""7|PREEMPTED|None|n1|0:0|0:0|{TIMES}|/w/attempt-1|10|00:01.500||{TRES}
a line of a site's wrapper
7|CANCELLED by 1001|None|n[1-2]|0:0|0:9|{TIMES}|/w/attempt-1|42|00:01.500||{TRES}
7.batch|CANCELLED|None|n1|0:15|0:15|{TIMES}||42|00:00.001|10660K|cpu=1
7.0|CANCELLED|None|n1|0:15|0:15|{TIMES}||42|1-00:00:01|2G|cpu=1"""


def test_a_job_is_summarized_from_its_newest_run_and_its_steps() -> None:
    record = summarize("7", rows(TEXT))
    assert record and record.cancelled_by == "1001" and record.earlier == ("PREEMPTED",)
    assert (record.state, record.reason, record.nodes) == ("CANCELLED by 1001", "", "n[1-2]")
    assert (record.exit_code, record.derived) == ("0:0", "0:9")
    assert (record.max_rss, record.node_mem) == (2 * 2**30, 4 * 2**30)
    assert (record.elapsed, record.earlier_seconds, record.cpu_seconds) == (42, 10, 1.5)
    assert record.is_final and record.gpus == 0
    assert summarize("8", rows(TEXT)) is None


def test_gpus_of_all_nodes_are_counted() -> None:
    record = summarize("7", rows(TEXT.replace("mem=8G,node=2", "gres/gpu=16,mem=8G,node=2")))
    assert record and record.gpus == 16


def test_values_that_accounting_does_not_know_are_no_error() -> None:
    text = TEXT.replace("|42|", "|INVALID|").replace(TRES, "node=?,gres/gpu=1.00K")
    record = summarize("7", rows(text))
    assert record and (record.elapsed, record.gpus, record.node_mem) == (0.0, 0, 0.0)


def test_a_step_that_ran_out_of_memory_is_named_unless_it_may_be_of_an_earlier_run() -> None:
    text = TEXT.replace("7.0|CANCELLED", "7.0|OUT_OF_MEMORY")
    record = summarize("7", rows(text))
    assert record and record.oom_step == ""
    record = summarize("7", rows(text.partition("\n")[2]))
    assert record and record.oom_step == "7.0"


@pytest.mark.parametrize(
    "state",
    [
        "RUNNING",
        "PENDING",
        "COMPLETING",
        "SUSPENDED",
        "REQUEUED",
        "RESIZING",
        "STOPPED",
        "a state of Slurm 99",
    ],
)
def test_a_job_whose_end_accounting_has_not_recorded_is_not_final(state: str) -> None:
    record = summarize("7", rows(TEXT.replace("CANCELLED by 1001", state)))
    assert record and not record.is_final


def test_a_row_names_who_cancelled_a_job() -> None:
    info = accounting.job_info(rows(TEXT)[1])
    assert info.phase is Phase.ENDED and not info.meaning.good
    assert (info.job_id, info.state, info.reason) == ("7", "CANCELLED by 1001", "")
    assert (info.queue_seconds, info.run_seconds, info.directory) == (2, 60, "/w/attempt-1")


def test_a_row_has_the_signal_that_ended_the_job() -> None:
    info = accounting.job_info(rows(TEXT.replace("|0:0|0:9|", "|0:15|0:15|"))[1])
    assert (info.exit_code, info.signal) == (0, 15)


def test_sacct_is_queried_for_the_fields_of_a_row() -> None:
    argv = accounting.argv(["7", "8"], usage=True)
    assert argv[argv.index("-o") + 1].count(",") + 1 == len(Row._fields)
    base = accounting.argv(["7", "8"])
    assert argv[argv.index("-o") + 1] == f"{base[base.index('-o') + 1]},{accounting.USAGE_FIELDS}"
    assert argv[argv.index("-j") + 1] == "7,8"
    assert "-X" in argv and "-D" in argv
    with_steps = accounting.argv(["7"], steps=True)
    assert "-D" in with_steps and "-X" not in with_steps


def test_sizes_and_times_are_parsed_in_every_form_of_sacct() -> None:
    assert (parse_size("10660K"), parse_size("512M"), parse_size("")) == (10660 * 1024, 512 * 2**20, 0)
    assert (parse_seconds("1-02:03:04"), parse_seconds("03:04.005"), parse_seconds("")) == (93784, 184.005, 0)
    assert parse_seconds("INVALID") == 0


# slurmctld was killed, lost job 9, and gave its id to another job.
REUSED = (
    TEXT.replace("7", "9")
    + f"""
9|COMPLETED|None|n3|0:0|0:0|{TIMES}|/w/other/attempt-1|375|00:01||{TRES}
9.batch|COMPLETED|None|n3|0:0|0:0|{TIMES}||375|00:01|9G|cpu=1"""
)


@pytest.mark.parametrize(
    ("directory", "state", "elapsed", "max_rss"),
    [
        ("/w/attempt-1", "CANCELLED by 1001", 42, 2 * 2**30),
        ("/w/other/attempt-1", "COMPLETED", 375, 9 * 2**30),
        ("", "COMPLETED", 375, 9 * 2**30),
    ],
)
def test_a_job_whose_id_was_given_to_another_one_has_its_own_record(
    directory: str, state: str, elapsed: float, max_rss: float
) -> None:
    record = summarize("9", rows(REUSED), directory)
    assert record and (record.state, record.elapsed, record.max_rss) == (state, elapsed, max_rss)
    assert summarize("9", rows(REUSED), "/w/never-ran") is None


def test_the_newest_record_has_no_earlier_runs_of_a_job_that_had_its_id() -> None:
    record = summarize("9", rows(REUSED))
    assert record and record.earlier == ()


# A site that records GPUs (AccountingStorageTRES=gres/gpuutil,gres/gpumem, AutoDetect=nvml): two nodes of 4 GPUs.
USED = f"""7|COMPLETED|None|n[1-2]|0:0|0:0|{TIMES}|/w/attempt-1|3600|08:00:00||cpu=32,gres/gpu=8,mem=64G,node=2|120||
7.batch|COMPLETED|None|n1|0:0|0:0|{TIMES}||3600|00:01|10660K|cpu=1||cpu=00:00:01,gres/gpumem=0,gres/gpuutil=0|cpu=1
7.0|COMPLETED|None|n1|0:0|0:0|{TIMES}||3600|07:59:59|8G|cpu=1||gres/gpumem=160G,gres/gpuutil=300|gres/gpumem=164G,gres/gpuutil=396"""


def test_what_a_job_used_of_its_request_has_the_gpus_where_the_site_records_them() -> None:
    record = summarize("7", rows(USED))
    assert record
    assert record.efficiency() == {
        "cpu_percent": 25,
        "memory_gib": 8,
        "memory_limit_gib": 32,
        "run_s": 3600,
        "limit_s": 7200,
        "gpu_percent": 300,
        "gpu_percent_max": 396,
        "gpu_memory_gib": 164,
        "gpus_per_node": 4,
    }
    assert accounting.describe(record.efficiency()) == (
        "CPUs 25 %, memory 8 of 32 GiB, time 60 of 120 min, GPUs of a node 300 of 400 %, GPU memory of a node 164 GiB"
    )


@pytest.mark.parametrize("limit", ["UNLIMITED", "Partition_Limit", ""])
def test_what_accounting_does_not_record_is_left_out(limit: str) -> None:
    text = USED.replace("|120|", f"|{limit}|").replace("gres/", "other/").replace("mem=64G", "billing=1")
    record = summarize("7", rows(text))
    assert record
    assert record.efficiency() == {"cpu_percent": 25, "memory_gib": 8, "run_s": 3600}
    assert accounting.describe(record.efficiency()) == "CPUs 25 %, memory 8 GiB, time 60 min"
    record = summarize("7", rows(TEXT.replace("|42|", "|0|")))
    assert record and record.efficiency() == {"memory_gib": 2, "memory_limit_gib": 4}
    assert accounting.describe({"run_s": 5, "limit_s": 300}) == "time 5 of 300 s"
    assert accounting.describe({}) == ""
