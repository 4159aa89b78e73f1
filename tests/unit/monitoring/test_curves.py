"""Curves that stay small however long a training is."""

from __future__ import annotations

import json
import math
import random

from llm_bridge.monitoring.curves import MAX_CURVES, MAX_POINTS, Curve, Curves, thinned
from llm_bridge.remote.messages import Measures


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def metrics(*rows: object, end: int = 1) -> dict[str, Measures]:
    return {"metrics.jsonl": Measures(lines(*rows), end)}


def test_a_long_curve_is_bounded_and_keeps_its_smallest_and_largest_value_and_its_ends() -> None:
    curve, draw = Curve(), random.Random(0)
    values = [draw.gauss(0, 1) for _ in range(100_000)]
    values[12_345], values[77_777] = 99.0, -99.0
    for step, value in enumerate(values):
        curve.add(step, value)
    found = curve.to_json()
    assert len(found["x"]) <= MAX_POINTS
    assert found["x"] == sorted(set(found["x"]))
    assert (12_345, 99.0) in curve.points() and (77_777, -99.0) in curve.points()
    assert found["x"][-1] == 99_999


def test_a_spike_survives_thinning() -> None:
    curve = Curve()
    for step in range(900):
        curve.add(step, 50.0 if step == 333 else 1.0)
    small = thinned(curve.to_json(), 40)
    assert len(small["x"]) <= 40 and 333 in small["x"] and small["x"][-1] == 899


def test_the_later_line_of_a_step_counts_after_a_job_has_resumed_from_a_checkpoint() -> None:
    curves = Curves()
    curves.read(metrics(*({"step": n, "data": {"train/loss": 1.0}} for n in range(1, 6))))
    curves.read(metrics(*({"step": n, "data": {"train/loss": 2.0}} for n in range(4, 7))))
    assert curves.to_json()["train/loss"]["x"] == [1, 2, 3, 4, 5, 6]
    assert curves.to_json()["train/loss"]["y"] == [1, 1, 1, 2, 2, 2]


def test_lines_that_are_no_measure_are_ignored() -> None:
    curves = Curves()
    text = 'no json\n[1]\n{"step": "x", "data": {}}\n{"step": 1, "data": {"train/loss": "low", "val/loss": true}}\n'
    text += '{"step": 2, "data": {"train/loss": NaN, "actor/pg_loss": null, "own/metric": 3}}\n'
    text += lines({"step": 3, "data": {"train/loss": 0.123456789}})
    assert curves.read({"metrics.jsonl": Measures(text, 9)})
    assert curves.to_json() == {"train/loss": {"x": [3], "y": [0.12346], "stride": 1}}


def test_a_training_with_countless_metrics_keeps_a_limited_number_of_curves() -> None:
    curves = Curves()
    data = {f"val-aux/source{n}/reward/mean@1": 1.0 for n in range(500)} | {"train/loss": 1.0}
    curves.read(metrics({"step": 1, "data": data}))
    assert len(curves.to_json()) == MAX_CURVES and "train/loss" in curves.to_json()


def test_the_use_of_gpus_is_a_curve_of_each_node_over_time() -> None:
    gpus = [{"percent": 90.0, "memory_mib": 1024.0}, {"percent": 50.0, "memory_mib": 2048.0}, {"index": 2}]
    curves = Curves()
    curves.read({"gpu_use/n1.jsonl": Measures(lines({"time": 100.5, "gpus": gpus}), 5)})
    assert curves.to_json() == {
        "gpu_use/n1/gpu_percent": {"x": [100.5], "y": [70.0], "stride": 1},
        "gpu_use/n1/memory_gib": {"x": [100.5], "y": [2.0], "stride": 1},
    }


def test_another_triggerer_continues_the_curves_where_the_first_one_has_stored_them() -> None:
    rows = [{"step": n, "data": {"train/loss": math.sin(n)}} for n in range(5000)]
    first = Curves()
    first.read(metrics(*rows[:3000], end=300))
    stored = json.loads(json.dumps(first.to_json()))
    second = Curves.from_json(stored, first.offsets)
    assert second.offsets == {"metrics.jsonl": 300}
    second.read(metrics(*rows[3000:], end=500))
    found = second.to_json()["train/loss"]
    assert len(found["x"]) <= MAX_POINTS and found["x"][0] <= 10 and found["x"][-1] == 4999
    assert found["x"] == sorted(set(found["x"]))
