"""Provider information, as Airflow's own schema requires it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import airflow
import jsonschema
import pytest

from llm_bridge.provider import get_provider_info
from llm_bridge.version import VERSION


def modules() -> list[str]:
    info = get_provider_info()
    return [
        name
        for key in ("operators", "sensors", "triggers")
        for entry in info[key]
        for name in entry["python-modules"]
    ]


def test_the_information_is_valid_for_airflow() -> None:
    schema: Any = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)
    assert get_provider_info()["versions"] == [VERSION]


@pytest.mark.parametrize("name", modules())
def test_a_listed_module_exists(name: str) -> None:
    assert importlib.import_module(name)
