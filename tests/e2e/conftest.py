"""The whole stack for the end-to-end tests: a Slurm cluster, a test Hub, a real Airflow, and sinks for alerts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from testing.local_cluster import LocalCluster
from testing.paths import DAGS
from testing.sinks import Mails, Posts, mail_server, web_server
from testing.site import Site
from testing.stack import DAG, RECIPE, LocalStack
from testing.twins import TWINS

ALERTS = {
    "email": {"conn_id": "mail_test", "sender": "llm-bridge@example.org", "to": ["team@example.org"]},
    "http": {"conn_id": "hook_test", "endpoint": "/hook"},
}


class E2eStack(LocalStack):
    """All that a test talks to."""

    conf = {"recipe": RECIPE, "cluster": "test"}

    def __init__(self, folder: Path, mails: Mails, posts: Posts) -> None:
        super().__init__(folder, LocalCluster("e2e", ssh_port=22622), "test", dags=dags(folder / "dags"))
        self.mails, self.posts = mails, posts
        describe(self.site)
        wrong = {"conn_type": "generic", "password": "hf_wrong_token_123"}
        self.environment |= {
            "AIRFLOW_CONN_MAIL_TEST": mails.connection,
            "AIRFLOW_CONN_HOOK_TEST": f"http://127.0.0.1:{posts.port}",
            "AIRFLOW_CONN_HUGGINGFACE_WRONG": json.dumps(wrong),
        }


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[E2eStack]:
    with ExitStack() as sinks:
        mails, posts = sinks.enter_context(mail_server()), sinks.enter_context(web_server())
        stack = E2eStack(tmp_path_factory.mktemp("e2e"), mails, posts)
        try:
            stack.start()
            stack.ready(DAG)
            yield stack
        finally:
            stack.stop()


def dags(folder: Path) -> Path:
    """dags/ with one more that runs the tiny recipe every night."""
    shutil.copytree(DAGS, folder)
    shutil.copytree(Path(__file__).parent / "dags", folder, dirs_exist_ok=True)
    return folder


def describe(site: Site) -> None:
    """Add two cluster files that are wrong in one thing each, the nightly recipe, the twins, and alerts."""
    site.write_cluster("wrong_token", site.values | {"hub": {"conn_id": "huggingface_wrong"}})
    site.write_cluster("wrong_partition", site.values | {"partition": "nope"})
    recipes = site.include / "recipes"
    nightly = yaml.safe_load((recipes / f"{RECIPE}.yaml").read_text())
    nightly["sft"]["verl"]["trainer"] |= {"total_epochs": 1, "save_freq": 3}
    nightly["ppo"]["verl"]["trainer"] |= {"save_freq": 1}
    # In one allocation with SFT: what is cleared and done again then is another job than the one that failed.
    nightly |= {"cluster": "test", "allocation": "shared"}
    # One run of another test evaluates.
    del nightly["evaluate"], nightly["publish"]
    del nightly["schedule"]  # its DAG is in dags/nightly_tiny.py
    (recipes / "nightly_tiny.yaml").write_text(yaml.safe_dump(nightly))
    often = {**nightly, "allocation": "per_stage", "stages": ["prepare", "sft"], "keep_runs": 1}
    (recipes / "tiny_often.yaml").write_text(yaml.safe_dump(often))
    for twin in TWINS:
        twin.write_recipe(site)
    (site.include / "alerts.yaml").write_text(yaml.safe_dump(ALERTS))
