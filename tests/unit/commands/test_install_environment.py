"""Arguments of install-environment; tests/operators builds on a real cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llm_bridge.__main__ import main
from llm_bridge.commands import install_environment
from llm_bridge.slurm.environment_build import EnvironmentBuild, pins

SITE = {"ssh_conn_id": None, "gpus_per_node": 8, "environment": {"venv": "/e/llm"}}


@pytest.fixture
def include(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM_BRIDGE_INCLUDE", str(tmp_path))
    (tmp_path / "clusters").mkdir()
    for name, changes in {"gpu": {}, "cpu": {"device": "cpu"}, "none": {"environment": {}}}.items():
        values = {**SITE, "workspace": str(tmp_path / "w"), **changes}
        (tmp_path / "clusters" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[EnvironmentBuild]:
    """Builds that were asked for, in place of building."""
    found: list[EnvironmentBuild] = []

    async def build(wanted: EnvironmentBuild, *, on_login_node: bool) -> int:
        found.append(wanted)
        return 0

    monkeypatch.setattr(install_environment, "_build", build)
    return found


def test_the_pins_are_those_of_the_engine_or_of_the_clusters_device(
    include: Path, asked: list[EnvironmentBuild]
) -> None:
    calls = [["gpu"], ["cpu"], ["gpu", "--engine", "sglang"]]
    assert [main(["install-environment", *arguments]) for arguments in calls] == [0, 0, 0]
    assert [build.requirements for build in asked] == [pins("vllm"), pins("cpu"), pins("sglang")]
    assert asked[0].python == "3.11" and asked[0].target == "/e/llm"


def test_a_requirements_file_and_the_options_are_taken(include: Path, asked: list[EnvironmentBuild]) -> None:
    (include / "mine.txt").write_text("a==1\n")
    options = ["--requirements", f"{include}/mine.txt", "--python", "3.12", "--find-links", "/wheels"]
    assert main(["install-environment", "gpu", *options, "--no-build-isolation", "b==2"]) == 0
    [build] = asked
    assert (build.lines, build.python, build.find_links) == (["a==1"], "3.12", "/wheels")
    assert build.without_isolation == ("b==2",)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "error: 'nope' is not one of the clusters in"),
        (["none"], "error: environment in include/clusters/none.yaml: set venv to the directory to build"),
        (["gpu", "--requirements", "/no/file"], "error: --requirements: /no/file cannot be read"),
        (["gpu", "--requirements", "/f", "--engine", "cpu"], "error: --engine selects llm-bridge's own pins"),
    ],
)
def test_a_wrong_argument_is_named_without_a_traceback(
    arguments: list[str],
    said: str,
    include: Path,
    asked: list[EnvironmentBuild],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["install-environment", *arguments]) == 1
    assert capsys.readouterr().err.startswith(said) and not asked
