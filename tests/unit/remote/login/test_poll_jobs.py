"""The helper `poll_jobs`: complete lines, backlogs, leases, and secrets of a job that has ended."""

from __future__ import annotations

import base64
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.login import poll_jobs
from llm_bridge.remote.messages import JobNews, JobQuery, LogQuery

ALL = LogQuery(offset=0, max_bytes=1000, max_backlog=10_000)


def poll(folder: Path, log: LogQuery | None = ALL, **more: Any) -> JobNews:
    return poll_jobs.poll(JobQuery("7", str(folder), log=log, **more))


def output(news: JobNews) -> bytes:
    return base64.b64decode(news.log)


def test_a_line_is_sent_when_it_is_complete_or_the_job_has_ended(tmp_path: Path) -> None:
    (tmp_path / attempt_dir.OUTPUT).write_bytes(b"one\ntwo")
    news = poll(tmp_path)
    assert (news.id, output(news), news.more, news.size) == ("7", b"one\n", False, 7)
    rest = ALL._replace(offset=4)
    news = poll(tmp_path, rest)
    assert (output(news), news.offset) == (b"", 4)
    assert output(poll(tmp_path, rest._replace(final=True))) == b"two"


def test_a_progress_bar_is_sent_before_its_line_ends(tmp_path: Path) -> None:
    (tmp_path / attempt_dir.OUTPUT).write_bytes(b"10%\r20%\r30")
    assert output(poll(tmp_path)) == b"10%\r20%\r"


def test_a_line_longer_than_one_poll_is_sent_in_parts_that_split_no_character(tmp_path: Path) -> None:
    text = "グ" * 100
    (tmp_path / attempt_dir.OUTPUT).write_text(text)
    offset, parts = 0, []
    while True:
        news = poll(tmp_path, ALL._replace(offset=offset, max_bytes=100, final=True))
        parts.append(output(news).decode())
        offset += len(output(news))
        if not news.more:
            break
    assert "".join(parts) == text and len(parts) > 2


def test_a_backlog_above_the_limit_is_skipped_up_to_a_line_near_the_end(tmp_path: Path) -> None:
    lines = b"".join(b"line %06d\n" % n for n in range(10_000))
    (tmp_path / attempt_dir.OUTPUT).write_bytes(lines)
    news = poll(tmp_path)
    assert news.skipped == news.offset > 50_000
    assert output(news).startswith(b"line 00") and lines[: news.offset].endswith(b"\n")


def test_a_log_that_does_not_exist_yet_is_empty(tmp_path: Path) -> None:
    assert output(poll(tmp_path)) == b""


def test_half_written_json_does_not_exist_yet(tmp_path: Path) -> None:
    (tmp_path / attempt_dir.OUTCOME).write_text('{"exit_')
    assert poll(tmp_path, files=[attempt_dir.OUTCOME]).files == {attempt_dir.OUTCOME: None}


def test_a_follower_that_acquires_the_lease_gets_the_previous_one_whose_holder_gets_no_more_output(
    tmp_path: Path,
) -> None:
    (tmp_path / attempt_dir.OUTPUT).write_bytes(b"one\n")
    first = {"follower": "a", "try": "1", "logs": "x", "offset": 0}
    assert poll(tmp_path, None, lease=first, acquire=True).current_lease is None
    assert output(poll(tmp_path, lease=first)) == b"one\n"
    second = {"follower": "b", "try": "1", "logs": "y", "offset": 0}
    assert poll(tmp_path, None, lease=second, acquire=True).current_lease == first
    # The offset stays stored until the second follower has found its own: a third one could need it.
    assert json.loads((tmp_path / attempt_dir.log_lease("1")).read_text()) == {**first, "follower": "b"}
    lost = poll(tmp_path, lease=first)
    assert lost.lease_lost and output(lost) == b""
    assert not poll(tmp_path, lease=second).lease_lost


def test_a_follower_whose_own_log_is_empty_now_sets_the_lease_back_at_once(tmp_path: Path) -> None:
    (tmp_path / attempt_dir.OUTPUT).write_text("one\n")
    first = {"follower": "a", "try": "1", "logs": "x", "offset": 4}
    poll(tmp_path, None, lease=first, acquire=True)
    again = {**first, "follower": "b", "offset": 0, "truncated": True}
    assert poll(tmp_path, None, lease=again, acquire=True).current_lease == first
    assert json.loads((tmp_path / attempt_dir.log_lease("1")).read_text()) == again


def test_two_tasks_that_show_the_same_output_keep_separate_leases(tmp_path: Path) -> None:
    (tmp_path / attempt_dir.OUTPUT).write_bytes(b"one\n")
    leases = [{"follower": name, "try": name, "logs": "x", "offset": 0} for name in ("a", "b")]
    for lease in leases:
        assert poll(tmp_path, None, lease=lease, acquire=True).current_lease is None
    assert [output(poll(tmp_path, lease=lease)) for lease in leases] == [b"one\n"] * 2


@pytest.mark.parametrize("text", [b"", b"abc", "aグ".encode(), b"\xff\xfe"])
def test_a_forced_part_of_a_line_is_a_prefix_and_empty_only_for_an_empty_line(text: bytes) -> None:
    part = poll_jobs.whole_lines(text, force=True)
    assert text.startswith(part) and (part or not text)


def test_the_secrets_of_a_job_are_removed_when_it_has_ended_and_not_before(tmp_path: Path) -> None:
    secret = tmp_path / attempt_dir.SECRETS / "hub"
    secret.parent.mkdir()
    secret.write_text("hf_x")
    poll(tmp_path)
    assert secret.exists()
    poll(tmp_path, over=True)
    poll(tmp_path, over=True)
    assert not secret.parent.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_job_is_followed_also_in_a_workspace_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(path: str, value: Any) -> None:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(attempt_dir, "write_json", full)
    (tmp_path / attempt_dir.OUTPUT).write_bytes(b"one\n")
    lease = {"follower": "a", "try": "1", "offset": 0}
    assert not poll(tmp_path, None, lease=lease, acquire=True).lease_lost
    assert output(poll(tmp_path, lease=lease)) == b"one\n"


def test_new_whole_lines_of_measures_are_sent_with_the_offset_after_them(tmp_path: Path) -> None:
    (tmp_path / attempt_dir.METRICS).write_text('{"step": 1}\n{"step": 2}\n{"st')
    use = tmp_path / attempt_dir.gpu_use("n1")
    use.parent.mkdir()
    use.write_text("{}\n")
    news = poll(tmp_path, None, measures={attempt_dir.METRICS: 12})
    assert news.measures == {
        attempt_dir.METRICS: ['{"step": 2}\n', 24],
        "gpu_use/n1.jsonl": ["{}\n", 3],
    }
    assert not news.more_measures
    again = poll(tmp_path, None, measures={name: part[1] for name, part in news.measures.items()})
    assert again.measures == {}


def test_measures_are_not_read_unless_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / attempt_dir.METRICS).write_text("{}\n")
    assert poll(tmp_path).measures == {}


def test_many_measures_come_in_several_answers_each_of_limited_size(tmp_path: Path) -> None:
    line = '{"step": 1, "data": {"%s": 1}}\n' % ("x" * 1000)
    (tmp_path / attempt_dir.METRICS).write_text(line * 1000)
    offset, text = 0, ""
    for _ in range(100):
        news = poll(tmp_path, None, measures={attempt_dir.METRICS: offset})
        part = news.measures[attempt_dir.METRICS]
        assert len(part[0]) <= poll_jobs.MAX_MEASURES_BYTES
        text, offset = text + part[0], part[1]
        if not news.more_measures:
            break
    assert text == line * 1000


def test_measures_that_a_job_began_anew_are_read_from_their_beginning(tmp_path: Path) -> None:
    (tmp_path / attempt_dir.METRICS).write_text("{}\n")
    news = poll(tmp_path, None, measures={attempt_dir.METRICS: 500})
    assert news.measures == {attempt_dir.METRICS: ["{}\n", 3]}
