"""The version, which is also the distribution's."""

from __future__ import annotations

import re
import tomllib

import llm_bridge
from llm_bridge.version import VERSION
from testing.paths import ROOT


def test_the_package_has_the_version_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    dynamic = project["tool"]["setuptools"]["dynamic"]["version"]
    assert "version" in project["project"]["dynamic"] and dynamic == {"attr": "llm_bridge.version.VERSION"}
    assert llm_bridge.__version__ == VERSION
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", VERSION)
