"""Curves of a training as a picture."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.hub import curves


def attempt(stage: Path, name: str, first: int, last: int, start: float = 0.0, **metrics: float) -> None:
    lines = [
        {"step": step, "time": start + step, "data": {key: value / step for key, value in metrics.items()}}
        for step in range(first, last + 1)
    ]
    (stage / name).mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (stage / name / attempt_dir.METRICS).write_text(text + '{"step": 7, "da')


def job(stage: Path) -> dict[str, Any]:
    return {"name": stage.name, "directory": str(stage), "gpus": 1}


def test_a_picture_has_a_panel_for_loss_reward_and_response_length(tmp_path: Path) -> None:
    sft, ppo = tmp_path / "sft", tmp_path / "ppo"
    attempt(sft, "attempt-1", 1, 2000, **{"train/loss": 9.0, "val/loss": 8.0, "other": 1.0})
    attempt(ppo, "ray-1", 1, 3, **{"critic/score/mean": 0.5, "response_length/mean": 100.0})
    drawn = curves.draw([job(sft), job(ppo)])
    assert drawn and drawn == curves.draw([job(sft), job(ppo)]), "the same picture makes no new commit"
    root = ET.fromstring(drawn)
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in texts if text and text[:3] in ("SFT", "RL:")] == list(curves.PANELS)
    assert {"training", "validation", "step 2000", "9", "100"} <= set(texts)
    lines = [line.attrib["points"].split() for line in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(line) for line in lines] == [500, 500, 3, 3]
    numbers = [float(number) for number in re.findall(r"[\d.-]+", lines[0][0] + " " + lines[0][-1])]
    assert numbers[0] >= 70 and numbers[2] == 620, "the last step is shown"


def test_an_attempt_that_resumes_replaces_the_steps_from_there_on(tmp_path: Path) -> None:
    attempt(tmp_path, "attempt-1", 1, 5, **{"train/loss": 1.0})
    attempt(tmp_path, "attempt-2", 3, 4, start=1000, **{"train/loss": 9.0})
    found = curves.read(attempt_dir.attempts_in(str(tmp_path)))
    assert found == {"train/loss": {1: 1.0, 2: 0.5, 3: 3.0, 4: 2.25}}


def test_without_two_steps_there_is_no_picture(tmp_path: Path) -> None:
    assert curves.draw([job(tmp_path)]) is None
    attempt(tmp_path, "attempt-1", 1, 1, **{"train/loss": 1.0})
    assert curves.draw([job(tmp_path)]) is None
    attempt(tmp_path, "attempt-2", 2, 3, **{"train/loss": float("nan"), "val/loss": float("inf")})
    assert curves.draw([job(tmp_path)]) is None
