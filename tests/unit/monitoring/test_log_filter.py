"""Lines of a job's output that the task's log shows, and their levels; the texts are those of verl, Ray and PyTorch."""

from __future__ import annotations

import logging
import tracemalloc

import pytest

from llm_bridge.monitoring.log_filter import (
    BAR_SECONDS,
    MAX_KEYS,
    MAX_STRUCTURE_LINES,
    MAX_WHOLE_TRACEBACKS,
    WINDOW_SECONDS,
    LogFilter,
    level_of,
)

COLORED = "\x1b[36m({} pid={}, ip=10.0.0.{})\x1b[0m {}"
WARNING = "WARNING:2026-11-28 04:24:{},187:No model-specific Continuous Token builder is registered"
BAR = "Loading weights: {:3}%|██        | {}/20 [00:00<00:00, 35320.45it/s]"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines(clock: Clock) -> LogFilter:
    return LogFilter(clock)


def test_a_line_that_differs_by_time_process_node_and_rays_count_is_a_repeat(lines: LogFilter) -> None:
    assert lines.shows(COLORED.format("WorkerDict", 341, 1, WARNING.format(13)))
    assert not lines.shows(COLORED.format("WorkerDict", 17, 2, WARNING.format(14)))
    assert not lines.shows(
        f"\x1b[36m(pid=4)\x1b[0m {WARNING.format(15)} [repeated 3x across cluster] (Ray …)"
    )
    assert lines.shows("[rank0]:[W1128 04:20:41.275851139 ProcessGroup.hpp:1006] Warning: No backend")
    assert not lines.shows(
        "[n2] [rank1]:[W1129 05:20:41.283693214 ProcessGroup.hpp:1006] Warning: No backend"
    )
    assert lines.shows("object at 0x7f3a12 of job 4e5f6a7b8c9d0e1f")
    assert not lines.shows("object at 0x7f3b99 of job aabbccddeeff0011")
    assert lines.summary() == (
        "not shown above: 4 repeated lines; most often, 2 times: WARNING:TIME:No model-specific Continuous Token "
        "builder is registered"
    )
    assert lines.summary() == ""


def test_every_line_that_differs_by_another_number_is_shown(lines: LogFilter) -> None:
    assert all(lines.shows(f"1764304344.{n:06} line {n} of job, life 0") for n in range(3000))
    assert all(lines.shows(f"[n1] step:{n} - train/loss:{n / 7}") for n in range(3000))
    assert lines.summary() == ""


def test_a_line_is_shown_again_after_the_window_with_the_number_of_repeats(
    lines: LogFilter, clock: Clock
) -> None:
    assert lines.shows("slow file system") and lines.repeats("slow file system") == 0
    assert not lines.shows("slow file system")
    clock.now = WINDOW_SECONDS
    assert lines.shows("slow file system") and lines.repeats("slow file system") == 1
    assert lines.summary() == ""


def test_a_progress_bar_is_one_line_at_its_end_and_one_a_minute_before(
    lines: LogFilter, clock: Clock
) -> None:
    shown = []
    for percent in range(0, 101, 5):
        clock.now += BAR_SECONDS / 10
        shown += [percent] if lines.shows(BAR.format(percent, percent // 5)) else []
    assert shown == [60, 100]
    assert not lines.shows("Generating train split: 64 examples [00:00, 11103.39 examples/s]")
    assert lines.shows("[n1] Epoch 1/3:  50%|█████     | 2/4 [00:01<00:01,  1.13it/s]step:3 - train/loss:5.1")


def test_a_printed_configuration_is_shown_to_its_tenth_line(lines: LogFilter) -> None:
    rows = [
        "{'actor': {'_target_': 'verl.FSDPActorConfig',",
        *(f"           'key{n}': {n}," for n in range(900)),
    ]
    shown = [row for row in rows if lines.shows(COLORED.format("TaskRunner", 1, 1, row))]
    assert shown == rows[: MAX_STRUCTURE_LINES + 1]
    assert lines.shows("Using dataset class: RLHFDataset")
    assert "890 lines of printed settings" in lines.summary()


def test_tracebacks_are_whole_although_they_share_lines_until_there_are_many(lines: LogFilter) -> None:
    def traceback(process: int, error: str) -> list[bool]:
        texts = ["Traceback (most recent call last):", '  File "a.py", line 3, in f', "    g()", error]
        return [lines.shows(COLORED.format("WorkerDict", process, 1, text)) for text in texts]

    assert traceback(1, "ValueError: one") == [True] * 4
    assert traceback(2, "ValueError: two") == [True] * 4
    for process in range(MAX_WHOLE_TRACEBACKS):
        traceback(process, "ValueError: two")
    assert traceback(99, "ValueError: three") == [False, False, False, True]


def test_a_prefix_without_text_is_not_shown(lines: LogFilter) -> None:
    assert not lines.shows("\x1b[36m(TaskRunnerV1 pid=1095)\x1b[0m ")
    assert lines.summary() == ""


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("INFO:2026-11-28 04:22:55,149:Total training steps: 2", logging.INFO),
        (COLORED.format("W", 1, 1, WARNING.format(1)), logging.WARNING),
        ("2026-11-28 04:24:13 - WARNING - transfer_queue.utils: too many threads", logging.WARNING),
        ("/lib/verl/__init__.py:32: UserWarning: torchtitan engine is not available", logging.WARNING),
        ("[n1] [rank0]:[W1128 04:20:41.2 ProcessGroup.hpp:1006] No backend", logging.WARNING),
        ("[rank1]:E1128 04:24:15.461000 341 torch/distributed/elastic] failed", logging.ERROR),
        ("2026-11-28 04:22:18,956\tERROR worker.py:1691 -- the raylet died", logging.ERROR),
        ("[n2] Traceback (most recent call last):", logging.ERROR),
        ("[n2] torch.OutOfMemoryError: CUDA out of memory", logging.ERROR),
        ("ray init kwargs: {'NCCL_DEBUG': 'WARN', 'error_rate': 0}", logging.INFO),
        ("step:1 - train/errors:0", logging.INFO),
    ],
)
def test_a_line_is_logged_on_the_level_that_it_names(line: str, level: int) -> None:
    assert level_of(line) == level


@pytest.mark.parametrize(
    "line",
    ["1" * 8192, "1." * 4096, "1/" * 4096, "a1" * 4096, " [00:00" * 1000, "1" * 8000 + " [00:01, 2it/s]"],
)
def test_a_line_of_any_text_is_read_in_linear_time(lines: LogFilter, line: str) -> None:
    """The triggerer's event loop waits for it: with backtracking, some of these would take hours."""
    for number in range(20):
        lines.shows(f"{line}{number}")
        level_of(line)


def test_an_output_with_ever_new_prefixes_bars_and_long_lines_takes_little_memory(lines: LogFilter) -> None:
    tracemalloc.start()
    for number in range(3 * MAX_KEYS):
        lines.shows(f"[{number}] " + "x" * 4000 + str(number))
        lines.shows(f"shard {number}: 50%|██ | 1/2 [00:01<00:01, 1.13it/s]")
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 4e6


def test_a_printed_configuration_that_comes_in_pieces_is_shown_to_its_tenth_line() -> None:
    shown = LogFilter()
    whole = [f"(Runner pid=1)     'key{number}': False," for number in range(12)]
    pieces = ["'fsdp_size': ", "-1", ",", ": 'fp32'", "None", "{'_target_': 'verl.QAT',", "False},"]
    lines = [*whole, *(f"(Runner pid=1) {piece}" for piece in pieces)]
    assert [line for line in lines if shown.shows(line)] == whole[:10]
    assert shown.shows("(Runner pid=1) dataset len: 64")
    assert shown.shows("(Runner pid=1) None"), "outside of a configuration"


def test_one_line_of_a_kind_is_counted_in_the_singular(lines: LogFilter) -> None:
    assert lines.shows("one") and not lines.shows("one")
    lines.shows("Loading:  10%|█         | 1/10 [00:01<00:09,  1.00s/it]")
    assert lines.summary() == (
        "not shown above: 1 repeated line, 1 state of a progress bar; most often, 1 time: one"
    )
