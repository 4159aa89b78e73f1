"""Tags of published models; tests/hub runs them against the test Hub."""

from __future__ import annotations

from types import SimpleNamespace

from llm_bridge.remote.node.hub.tags import move_tags


class Hub:
    """The tags of a repository."""

    def __init__(self, **tags: str) -> None:
        self.tags = {name.replace("_", "-"): commit for name, commit in tags.items()}

    def list_repo_refs(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(
            tags=[SimpleNamespace(name=name, target_commit=commit) for name, commit in self.tags.items()]
        )

    def create_tag(self, repo_id: str, *, tag: str, revision: str, exist_ok: bool) -> None:
        assert tag not in self.tags
        self.tags[tag] = revision

    def delete_tag(self, repo_id: str, *, tag: str) -> None:
        del self.tags[tag]


def test_tags_point_to_the_new_commit_and_others_stay() -> None:
    hub = Hub(latest_good="old", v1="first")
    assert move_tags(hub, "me/m", "new", ["latest-good", "run-1"], None) == (["latest-good", "run-1"], [])
    assert hub.tags == {"latest-good": "new", "run-1": "new", "v1": "first"}


def test_a_second_run_changes_no_tag() -> None:
    hub = Hub(latest_good="same")
    hub.delete_tag = None  # type: ignore[assignment, method-assign]
    move_tags(hub, "me/m", "same", ["latest-good"], None)
    assert hub.tags == {"latest-good": "same"}


def test_a_tag_of_a_person_is_no_nightly_one() -> None:
    hub = Hub(**{"nightly-best": "a", "nightly-2026-11-02": "b"})
    assert move_tags(hub, "me/m", "c", ["nightly-2026-11-03"], 1)[1] == ["nightly-2026-11-02"]
    assert hub.tags == {"nightly-best": "a", "nightly-2026-11-03": "c"}


def test_only_the_newest_nightly_tags_are_kept() -> None:
    hub = Hub(**{"nightly-2026-11-01": "a", "nightly-2026-11-02": "b", "latest-good": "b", "v1": "a"})
    _, removed = move_tags(hub, "me/m", "c", ["nightly-2026-11-03", "latest-good"], 2)
    assert removed == ["nightly-2026-11-01"]
    assert hub.tags == {
        "nightly-2026-11-02": "b", "nightly-2026-11-03": "c", "latest-good": "c", "v1": "a"
    }  # fmt: skip


def test_an_earlier_night_that_is_trained_again_is_not_the_latest() -> None:
    hub = Hub(**{"nightly-2026-11-02": "a", "nightly-2026-11-03": "b", "latest-good": "b"})
    made = move_tags(hub, "me/m", "c", ["run-1", "nightly-2026-11-02", "latest-good"], None)
    assert made == (["run-1", "nightly-2026-11-02"], [])
    assert hub.tags == {
        "nightly-2026-11-02": "c", "nightly-2026-11-03": "b", "latest-good": "b", "run-1": "c"
    }  # fmt: skip


def test_a_tag_that_was_removed_at_once_is_not_among_those_of_the_model() -> None:
    hub = Hub(**{"nightly-2026-11-03": "b"})
    assert move_tags(hub, "me/m", "c", ["run-1", "nightly-2026-11-02"], 1) == (
        ["run-1"],
        ["nightly-2026-11-02"],
    )
