"""A few quirks of sites, each on the real cluster; ``make sites-report`` plays all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testing.quirks.play import Player, odd_cluster
from testing.quirks.quirk import COLUMNS
from testing.quirks.table import BY_NAME


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Player]:
    """The report's cluster; only one at a time can be up."""
    with (tmp_path_factory.mktemp("quirks") / "log.txt").open("w") as log, odd_cluster(log) as player:
        yield player


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("tcsh", COLUMNS),
        ("sbatch_says_more", ("submit", "follow")),
        ("queue_of_high", ("submit", "follow", "orphan sweep")),
        ("five_minutes", ("submit", "check")),
        ("node_names", ("submit", "follow")),
    ],
)
def test_a_quirk_of_a_site_has_the_expected_outcome(
    player: Player, name: str, columns: tuple[str, ...]
) -> None:
    quirk = BY_NAME[name]
    if why := quirk.lacks():
        pytest.skip(why)
    cells = player.play(quirk, columns)
    assert {column: cell.found for column, cell in cells.items() if not cell.good} == {}
