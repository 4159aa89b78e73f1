"""Time limits as Slurm writes them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from llm_bridge.slurm.time_limit import parse, total, warning_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("2:00:00", 7200),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("1-12:30:15", 131415),
    ],
)
def test_every_form_of_sbatch_is_parsed(text: str, seconds: int) -> None:
    assert parse(text) == timedelta(seconds=seconds)


def test_limits_are_added_unless_one_of_them_is_the_sites_default() -> None:
    assert total(["2:00:00", "12:00:00", "15"]) == "0-14:15:00"
    assert total(["20:00:00", "6-00"]) == "6-20:00:00"
    assert total(["2:00:00", None]) is None


@pytest.mark.parametrize(
    ("limit", "seconds"), [("6-00:00:00", 3600), ("60", 1800), ("10", 300), ("2:59", None), (None, 600)]
)
def test_a_training_is_signalled_early_but_never_in_its_first_minute(
    limit: str | None, seconds: int | None
) -> None:
    assert warning_seconds(limit) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1:x"])
def test_any_other_text_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)
