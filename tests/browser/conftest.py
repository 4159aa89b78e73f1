"""The demo's stack on a cluster and ports of its own, and headless Chromium in front of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Browser, sync_playwright

from testing.airflow import USER
from testing.airflow_api import AirflowApi
from testing.local_cluster import LocalCluster
from testing.stack import DAG, RECIPE, LocalStack

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# A user that may log in, and has none of Airflow's roles.
GUEST = "guest"


class BrowserStack(LocalStack):
    """All that the browser talks to."""

    conf = {"recipe": RECIPE, "cluster": "local"}

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, LocalCluster("brow", ssh_port=23622), "local", port=8480)
        self.environment |= {
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin,{GUEST}:",
            "LLM_BRIDGE_RECIPE": RECIPE,
        }
        file = self.site.include / "recipes" / f"{RECIPE}.yaml"
        recipe = yaml.safe_load(file.read_text())
        recipe["ppo"]["verl"]["trainer"] |= {"save_freq": 1}  # so that a PPO that is cleared resumes
        for stage in ("prepare", "sft", "ppo", "merge", "evaluate", "upload"):
            recipe[stage]["time_limit"] = "90"  # a machine ten times slower
        file.write_text(yaml.safe_dump(recipe))

    def password(self, user: str) -> str:
        """Return the password of a user of Airflow's."""
        return str(json.loads(self.airflow.password_file.read_text())[user])

    def api_of(self, user: str) -> AirflowApi:
        """Return a client of the REST API that is logged in as another user."""
        return AirflowApi(self.airflow.url, user, self.password(user))


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserStack]:
    stack = BrowserStack(tmp_path_factory.mktemp("browser"))
    try:
        stack.start()
        stack.ready(DAG)
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, with a new and empty profile."""
    with sync_playwright() as drivers:
        browser: Any = drivers.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS])
        yield browser
        browser.close()
