"""Curves of a training, bounded in size: each keeps the smallest and the largest value of every stretch of steps."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.messages import Measures

# Points of one curve, and number of curves and of nodes; further ones are in the files of the attempt.
MAX_POINTS = 1000
MAX_CURVES = 40
MAX_NODES = 16
MAX_POINTS_OF_NODE = 300
# verl's names of the metrics that are kept, the first ones first where there are more than MAX_CURVES.
KEPT = (
    r"train/loss|val/loss|actor/pg_loss|critic/vf_loss|actor/entropy(_loss)?",
    r"critic/score/(mean|min|max)|critic/rewards/mean|val-core/.+",
    r"actor/(ppo_kl|kl_loss|reward_kl_penalty)|critic/kl",
    r"response_length/(mean|max|clip_ratio)|prompt_length/mean",
    r"perf/(throughput|time_per_step|mfu/\w+|max_memory_allocated_gb)|timing_s/(step|gen|update_actor)",
    r"(train|actor|critic)/(grad_norm|lr|pg_clipfrac)|train/tflops|val-aux/.+",
)
_KEPT = [re.compile(pattern) for pattern in KEPT]
_NODE = re.compile(rf"{attempt_dir.GPU_USE}/(.+)\{attempt_dir.LINES_SUFFIX}")
NODE_CURVES = ("gpu_percent", "memory_gib")


class Curve:
    """One curve of at most ``limit`` points: of each stretch of steps its smallest and its largest value.

    Args:
        limit: Maximum number of points.
    """

    def __init__(self, limit: int = MAX_POINTS) -> None:
        self._limit = limit
        # Points in one stretch, and per stretch the points that are kept, in order.
        self._stride = 1
        self._stretches: list[list[tuple[float, float]]] = []
        self._in_last = 0
        self._first: tuple[float, float] | None = None
        self._newest: tuple[float, float] | None = None

    def add(self, x: float, y: float) -> None:
        """Add a point; one at or before the newest one replaces it and all after it, as the later line counts."""
        if self._newest and x <= self._newest[0]:
            self._cut(x)
        if not self._stretches or self._in_last >= self._stride:
            self._stretches.append([])
            self._in_last = 0
        last = self._stretches[-1]
        if len(last) < 2:
            last.append((x, y))
        elif not min(last[0][1], last[1][1]) <= y <= max(last[0][1], last[1][1]):
            self._stretches[-1] = _extremes([*last, (x, y)])
        self._in_last += 1
        self._first, self._newest = self._first or (x, y), (x, y)
        if len(self._stretches) > max(1, self._limit // 2 - 2):
            pairs = zip(self._stretches[::2], [*self._stretches[1::2], []], strict=False)
            odd = len(self._stretches) % 2
            self._stretches = [_extremes([*first, *second]) for first, second in pairs]
            self._in_last += 0 if odd else self._stride
            self._stride *= 2

    def _cut(self, x: float) -> None:
        while self._stretches and self._stretches[-1] and self._stretches[-1][0][0] >= x:
            self._stretches.pop()
            self._in_last = self._stride
        if self._stretches:
            self._stretches[-1] = [point for point in self._stretches[-1] if point[0] < x]
        if self._first and self._first[0] >= x:
            self._first = None
        self._newest = None

    def points(self) -> list[tuple[float, float]]:
        """Return the points that are kept, in order; the first and the newest one are always among them."""
        found = [point for stretch in self._stretches for point in stretch]
        if self._first and (not found or found[0] != self._first):
            found.insert(0, self._first)
        if self._newest and (not found or found[-1] != self._newest):
            found.append(self._newest)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the curve as JSON values."""
        points = self.points()
        return {
            "x": [point[0] for point in points],
            "y": [_short(point[1]) for point in points],
            "stride": self._stride,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], limit: int = MAX_POINTS) -> Curve:
        """Return a curve from the values of :meth:`to_json`, to which points can be added."""
        curve = cls(limit)
        curve._stride = max(1, int(values.get("stride", 1)))
        points = list(zip(values["x"], values["y"], strict=True))
        curve._stretches = [points[i : i + 2] for i in range(0, len(points), 2)]
        curve._in_last = curve._stride
        if points:
            curve._first, curve._newest = points[0], points[-1]
        return curve


class Curves:
    """Curves of one attempt, made of the new lines of its files with measures.

    Attributes:
        offsets: File -> offset in bytes up to which it has been read.
    """

    def __init__(self) -> None:
        self.offsets: dict[str, int] = {}
        self._curves: dict[str, Curve] = {}

    def read(self, measures: dict[str, Measures]) -> bool:
        """Read new lines; return whether there were any. A line that is no measure is ignored."""
        for name, part in measures.items():
            self.offsets[name] = part.end
            node = _NODE.fullmatch(name)
            for x, values in _node_lines(node[1], part.text) if node else _metrics_lines(part.text):
                for key, value in values:
                    if curve := self._curve(key):
                        curve.add(x, value)
        return bool(measures)

    def _curve(self, key: str) -> Curve | None:
        if key not in self._curves:
            of_node = key.startswith(attempt_dir.GPU_USE)
            same = sum(name.startswith(attempt_dir.GPU_USE) == of_node for name in self._curves)
            if same >= (MAX_NODES * len(NODE_CURVES) if of_node else MAX_CURVES):
                return None
            self._curves[key] = Curve(MAX_POINTS_OF_NODE if of_node else MAX_POINTS)
        return self._curves[key]

    def to_json(self) -> dict[str, Any]:
        """Return the curves as JSON values: name -> :meth:`Curve.to_json`."""
        return {name: curve.to_json() for name, curve in self._curves.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any], offsets: dict[str, int]) -> Curves:
        """Return curves from the values of :meth:`to_json` and their ``offsets``, to which lines can be added."""
        curves = cls()
        curves.offsets = dict(offsets)
        for name, curve in values.items():
            limit = MAX_POINTS_OF_NODE if name.startswith(attempt_dir.GPU_USE) else MAX_POINTS
            curves._curves[name] = Curve.from_json(curve, limit)
        return curves


def thinned(values: dict[str, Any], limit: int) -> dict[str, Any]:
    """Return a curve with at most ``limit`` points, the smallest and the largest of each stretch, and the newest.

    Args:
        values: Values of :meth:`Curve.to_json`.
        limit: Maximum number of points.
    """
    x, y = values["x"], values["y"]
    if len(x) <= limit:
        return {"x": x, "y": y}
    points = list(zip(x, y, strict=True))
    size = math.ceil(len(points) / max(1, limit // 2 - 1))
    kept = [point for i in range(0, len(points), size) for point in _extremes(points[i : i + size])]
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    return {"x": [point[0] for point in kept], "y": [point[1] for point in kept]}


def _extremes(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= 2:
        return points
    low, high = min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])
    return sorted({low, high})


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _number(value: Any) -> float | None:
    """Return a finite number, else None; JSON written by Python may have NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 308 digits
        return None
    return number if math.isfinite(number) else None


def _objects(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):  # the latter for deeply nested lists
            continue
        if isinstance(found, dict):
            yield found


def _metrics_lines(text: str) -> Iterator[tuple[float, Iterable[tuple[str, float]]]]:
    for row in _objects(text):
        step, data = _number(row.get("step")), row.get("data")
        if step is None or not isinstance(data, dict):
            continue
        names = sorted((rank, name) for name in data if (rank := _rank(name)) is not None)
        values = ((name, _number(data[name])) for _, name in names)
        yield int(step), [(name, value) for name, value in values if value is not None]


@functools.lru_cache(maxsize=4096)
def _rank(name: str) -> int | None:
    return next((rank for rank, pattern in enumerate(_KEPT) if pattern.fullmatch(name)), None)


def _node_lines(node: str, text: str) -> Iterator[tuple[float, Iterable[tuple[str, float]]]]:
    for row in _objects(text):
        at, gpus = _number(row.get("time")), row.get("gpus")
        if at is None or not isinstance(gpus, list) or not all(isinstance(gpu, dict) for gpu in gpus):
            continue
        use = [value for gpu in gpus if (value := _number(gpu.get("percent"))) is not None]
        memory = [value for gpu in gpus if (value := _number(gpu.get("memory_mib"))) is not None]
        values = []
        if use:
            values.append((f"{attempt_dir.GPU_USE}/{node}/gpu_percent", sum(use) / len(use)))
        if memory:
            values.append((f"{attempt_dir.GPU_USE}/{node}/memory_gib", max(memory) / 1024))
        yield at, values
