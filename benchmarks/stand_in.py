"""What operators need of Airflow outside of it: a task's context, ``include/`` with cluster files, connections.

Slurm, Ray, the login node and the operators are real in the reports; this alone is not.
"""

# Nothing of Airflow may be imported here at once: that reads where its home is, which a report sets first.
from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from local_cluster import LocalCluster

INCLUDE = Path(__file__).resolve().parents[1] / "include"


def describe_site(cluster: LocalCluster, folder: Path) -> Path:
    """Make ``FOLDER/include`` with a cluster file named as the cluster, and the connection that it names."""
    include, site = folder / "include", cluster.settings.name
    shutil.copytree(INCLUDE, include)
    values = yaml.safe_load((include / "clusters" / "local.yaml").read_text())
    values |= {"ssh_conn_id": site, "workspace": str(cluster.workspace), "hub": {}}
    (include / "clusters" / f"{site}.yaml").write_text(yaml.safe_dump(values))
    extra = {"key_file": str(cluster.ssh_key), "known_hosts": str(cluster.known_hosts)}
    login = {
        "conn_type": "ssh",
        "host": "127.0.0.1",
        "port": cluster.ssh_port,
        "login": "svc",
        "extra": extra,
    }
    os.environ[f"AIRFLOW_CONN_{site.upper()}"] = json.dumps(login)
    os.environ["LLM_BRIDGE_INCLUDE"] = str(include)
    return include


class Store(dict[str, Any]):
    """Stands for Airflow's ``task_state_store``, which needs a supervisor."""

    def set(self, key: str, value: Any) -> None:
        """As the real one, which takes JSON values only."""
        self[key] = json.loads(json.dumps(value))


class Task:
    """One task instance: the parts of its context that operators and callbacks read.

    :param pushed: every XCom, the oldest first: (key, value).
    """

    def __init__(self, task_id: str, *, dag_id: str, run_id: str, retries: int = 0) -> None:
        self.store = Store()
        self.pushed: list[tuple[str, Any]] = []
        self.ti = SimpleNamespace(
            id=str(uuid.uuid4()),
            dag_id=dag_id,
            run_id=run_id,
            task_id=task_id,
            map_index=-1,
            try_number=1,
            max_tries=retries,
            log_url=f"http://localhost:8080/dags/{dag_id}/runs/{run_id}/tasks/{task_id}",
            xcom_push=lambda key, value: self.pushed.append((key, value)),
            xcom_pull=lambda *, task_ids, key, map_indexes=None: self.xcoms.get(key),
        )

    @property
    def xcoms(self) -> dict[str, Any]:
        """As they are now."""
        return dict(self.pushed)

    @property
    def context(self) -> Any:
        """What an operator is given."""
        run = SimpleNamespace(clear_number=0, run_type="manual")
        return {"ti": self.ti, "dag_run": run, "task_state_store": self.store}
