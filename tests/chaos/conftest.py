"""One Slurm cluster, one PostgreSQL and one Airflow for all of these tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.chaos.stack import ChaosStack

# CHAOS_SHORT=1 leaves the long ones out, those of more than two minutes: so `make test` runs them.
SHORT = os.environ.get("CHAOS_SHORT") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="only in the long form (make chaos)")
    for item in items:
        if SHORT and item.get_closest_marker("long"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosStack]:
    stack = ChaosStack(tmp_path_factory.mktemp("chaos"))
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def run(request: pytest.FixtureRequest) -> str:
    """A run id of the test's own; short, so that it is the run's folder on the cluster, too."""
    return request.node.name.removeprefix("test_")[:40]
