"""Public names of the package, imported on first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

import llm_bridge
from testing.paths import PLUGINS


@pytest.mark.parametrize("name", llm_bridge.__all__)
def test_a_public_name_is_available(name: str) -> None:
    value = getattr(llm_bridge, name)
    assert isinstance(value, str) or value.__name__ == name


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = llm_bridge.nope


def test_the_package_itself_imports_the_standard_library_only() -> None:
    code = f"import sys; sys.path.append({str(PLUGINS)!r}); import llm_bridge; assert 'airflow' not in sys.modules"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code]).returncode == 0
