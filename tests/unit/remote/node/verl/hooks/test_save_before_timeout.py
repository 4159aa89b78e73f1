"""When the last step is saved before a job's end; nothing here runs verl."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.verl.hooks.save_before_timeout import DeadlineSaver, SaveFreq

MINUTE = 60.0


class Training:
    """Steps and saves that take a known time, by a clock of its own."""

    def __init__(self, notice: Path, step: float, save: float, every: int = -1) -> None:
        self.now, self.step, self.save = 0.0, step, save
        self.last = DeadlineSaver(notice, clock=lambda: self.now)
        self.save_freq = SaveFreq(every, self.last.due)
        self.saved: dict[int, float] = {}

    def run(self, until: float, at_step: Callable[[int], None] = lambda step: None) -> float:
        """Train to the job's end; seconds that were trained in vain."""
        step = 0
        while self.now + self.step <= until:
            self.now += self.step
            step += 1
            at_step(step)
            if self.save_freq > 0 and step % self.save_freq == 0:  # as verl writes it
                began, self.now = self.now, self.now + self.save
                if self.now <= until:
                    self.last.saved()
                    self.saved[step] = began
        return until - max(self.saved.values(), default=0.0)


def notice(path: Path, ends: float) -> Path:
    path.write_text(str(int(ends)))
    return path


@pytest.mark.parametrize(
    ("step", "save"),
    [(5.0, 10.0), (20.0, 60.0), (4 * MINUTE, 6 * MINUTE), (0.5, 0.1)],
)
def test_at_the_end_no_more_is_lost_than_a_step_a_save_and_a_reserve(
    tmp_path: Path, step: float, save: float
) -> None:
    ends = 60 * MINUTE
    training = Training(notice(tmp_path / attempt_dir.DEADLINE, ends), step, save)
    assert training.run(ends) <= 2 * step + 1.25 * save + 30
    assert len(training.saved) <= 2, "one to learn how long it takes, and the last"


def test_the_length_of_a_save_that_was_due_anyway_is_known(tmp_path: Path) -> None:
    ends = 60 * MINUTE
    training = Training(notice(tmp_path / attempt_dir.DEADLINE, ends), 10.0, 20.0, every=50)
    assert training.run(ends) <= 2 * 10 + 25 + 30
    assert [step for step in training.saved if step % 50] == [max(training.saved)]


def test_without_a_warning_verl_decides_when_to_save(tmp_path: Path) -> None:
    training = Training(tmp_path / attempt_dir.DEADLINE, 10.0, 1.0, every=7)
    training.run(10 * MINUTE)
    assert training.saved and not [step for step in training.saved if step % 7]


def test_a_warning_in_the_middle_is_seen_at_the_next_step(tmp_path: Path) -> None:
    file, training = tmp_path / attempt_dir.DEADLINE, Training(tmp_path / attempt_dir.DEADLINE, 10.0, 5.0)
    training.run(400.0, lambda step: step == 30 and notice(file, 400))  # type: ignore[arg-type,func-returns-value]
    assert min(training.saved) == 30


def test_no_save_is_begun_that_cannot_end_in_time(tmp_path: Path) -> None:
    training = Training(notice(tmp_path / attempt_dir.DEADLINE, 200), 10.0, 120.0, every=1)
    training.run(130.0)  # it knows by now that a save takes 120 s
    training.save_freq = SaveFreq(-1, training.last.due)
    assert training.step * 5 % training.save_freq, "only 70 s are left"


@pytest.mark.parametrize("content", ["", "soon"])
def test_a_notice_that_says_nothing_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / attempt_dir.DEADLINE).write_text(content)
    assert not DeadlineSaver(tmp_path / attempt_dir.DEADLINE).due(1)


def test_the_number_is_verls_own_for_everybody_else() -> None:
    freq = SaveFreq(10, lambda step: step == 3)
    assert (freq, str(freq), [step for step in range(1, 21) if step % freq == 0]) == (10, "10", [3, 10, 20])
    assert type(pickle.loads(pickle.dumps(freq))) is int
    never = SaveFreq(-1, lambda step: False)
    assert never > 0 and never == sys.maxsize and [s for s in range(1, 100) if s % never == 0] == []
