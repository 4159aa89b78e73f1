"""Store the address of a job's W&B run for the button on the task's page, as soon as the run exists."""

from __future__ import annotations

import re
from typing import Any

from airflow.sdk.execution_time.xcom import XCom
from airflow.triggers.base import BaseTrigger
from asgiref.sync import sync_to_async

from llm_bridge.remote import attempt_dir

XCOM_KEY = "wandb_run"
_ADDRESS = re.compile(r"https?://[^\s\"'<>\\]{1,500}")


def address(found: Any) -> str:
    """Return a value if it is the address of a web page, else an empty text."""
    return found if isinstance(found, str) and _ADDRESS.fullmatch(found) else ""


async def store_address(trigger: BaseTrigger, files: dict[str, Any]) -> None:
    """Store the address of the W&B run for the task of a trigger, if these files of its attempt have one.

    An error never ends the trigger.

    Args:
        trigger: The trigger; outside of a triggerer nothing is stored, since the task's result has the address, too.
        files: Name -> content of the files that have changed.
    """
    run, ti = files.get(attempt_dir.WANDB_RUN), getattr(trigger, "task_instance", None)
    url = address(run.get("url")) if isinstance(run, dict) else ""
    if not url or ti is None:
        return
    try:
        await sync_to_async(XCom.set)(
            XCOM_KEY,
            url,
            dag_id=ti.dag_id,
            task_id=ti.task_id,
            run_id=ti.run_id,
            map_index=ti.map_index,
        )
    except Exception as error:
        trigger.log.warning("the task has no button to its W&B run %s: %s", url, error)
