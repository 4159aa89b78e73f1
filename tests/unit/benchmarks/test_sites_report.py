"""The table of quirks is consistent, and the report accepts no other outcome than the expected one."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import sites_report
from testing.quirks.quirk import COLUMNS, Cell, Quirk
from testing.quirks.table import QUIRKS


class Plays:
    """Stand-in for the player: every column has the same outcome."""

    def __init__(self, found: str) -> None:
        self.found = found

    def play(self, quirk: Quirk) -> dict[str, Cell]:
        return {column: Cell(quirk.expects(column), self.found) for column in COLUMNS}


def test_no_two_quirks_share_a_name_and_each_expects_outcomes_of_known_columns() -> None:
    names = [quirk.name for quirk in QUIRKS]
    assert len(set(names)) == len(names)
    for quirk in QUIRKS:
        assert set(quirk.expected) <= set(COLUMNS), quirk.name
        for outcome in quirk.expected.values():
            assert outcome.partition(": ")[0] in ("ok", "waits", "refused", "nothing submitted"), quirk.name


@pytest.mark.parametrize(
    ("expected", "found", "good"),
    [
        ("ok", "ok", True),
        ("ok", "waits: the controller", False),
        ("ok", "failed: KeyError", False),
        ("waits: limit", "waits: QOS limit reached", True),
        ("waits: limit", "waits: no node", False),
        ("waits: limit", "ok", False),
        ("refused: full", "failed: the disk is full", False),
    ],
)
def test_an_outcome_is_as_expected_if_its_kind_is_equal_and_it_says_the_text(
    expected: str, found: str, good: bool
) -> None:
    assert Cell(expected, found).good is good


@pytest.mark.parametrize(("found", "good"), [("ok", True), ("failed: no job", False)])
def test_a_row_is_as_expected_if_all_its_cells_are(found: str, good: bool) -> None:
    player: Any = Plays(found)
    row = sites_report.play(player, Quirk("odd", "is odd"))
    assert row["as_expected"] is good
    assert ("NOT AS EXPECTED" in sites_report.progress(row)) is not good


def test_a_quirk_whose_program_is_not_installed_is_shown_as_skipped() -> None:
    player: Any = Plays("ok")
    row = sites_report.play(player, Quirk("odd", "is odd", needs="/no/such/shell"))
    assert row["cells"] == {}
    assert "skipped: /no/such/shell is not installed" in sites_report.progress(row)
