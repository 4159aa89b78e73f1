"""``include/alerts.yaml``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from llm_bridge.exceptions import ConfigError
from llm_bridge.notifications import on_failure
from llm_bridge.notifications.config import Alerts
from testing.paths import ROOT


def test_a_wrong_key_in_the_alerts_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alerts.yaml").write_text("e-mail: {}\n")
    monkeypatch.setenv("LLM_BRIDGE_INCLUDE", str(tmp_path))
    with pytest.raises(
        ConfigError,
        match=r"include/alerts\.yaml(.|\n)*e-mail: no such key\. Did you mean email\? Allowed here: apprise, email, ",
    ):
        on_failure()


def test_the_example_in_the_alerts_file_is_valid_and_commented_out() -> None:
    text = (ROOT / "include" / "alerts.yaml").read_text()
    assert yaml.safe_load(text) is None
    example = [line[2:] for line in text.splitlines() if re.match(r"# (  )?\w+:( |$)", line)]
    alerts = Alerts.model_validate(yaml.safe_load("\n".join(example)))
    assert alerts.email and alerts.slack and alerts.http and alerts.apprise
    missing = [key for key in Alerts.model_fields if f"{key}:" not in text]
    assert not missing
    defaults = Alerts()
    for key in ("retries", "recoveries", "successes", "queued_after_hours"):
        assert getattr(alerts, key) == getattr(defaults, key), key
