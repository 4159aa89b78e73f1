"""Skip a nightly run that would train what an earlier run of its DAG has trained.

The task compares this run, once its data are prepared, with the newest earlier run that has succeeded. If nothing that
decides the model differs, it empties the run's list of stages: the tasks that follow skip themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from llm_bridge.notifications.callbacks import is_scheduled
from llm_bridge.pipeline.plan import PREPARE, UNCHANGED, Plan, plan_of
from llm_bridge.slurm import fingerprint
from llm_bridge.version import VERSION

if TYPE_CHECKING:
    from airflow.sdk import Context

SUMMARY = "summary"
# XCom of the summary of a successful run: {"fingerprint", "run_id": the run that trained}.
TRAINED_XCOM = "trained"
# Keys of a recipe that do not change the model, in addition to those that a stage's fingerprint leaves out.
_NOT_DECISIVE = {
    "name",
    "description",
    "cluster",
    "clusters",
    "schedule",
    "skip_unchanged",
    "keep_runs",
    "logger",
    "wandb",
    "allocation",
}
_SIZES = {"mem", "time_limit", "cpus_per_task", "keep", "hang_minutes", "on_hang"}


def fingerprint_of(plan: Plan, prepared: dict[str, Any] | None) -> str | None:
    """Return a fingerprint of all that decides a run's model and its publication.

    It includes the version of llm-bridge, but not the environment on the cluster. A base model and data that were
    downloaded before are used again, so a push to the Hub changes nothing until their directories are removed.

    Args:
        plan: The run's plan, with all its stages.
        prepared: Result of the stage prepare; None if it did not run.

    Returns:
        None where it is not known which data the run uses.
    """
    data = {
        stage: found["report"].get("hash") for stage, found in ((prepared or {}).get("data") or {}).items()
    }
    if not data or not all(data.values()):
        return None
    recipe = plan.recipe.model_dump(mode="json", exclude=_NOT_DECISIVE)
    for stage in ("prepare", "sft", "ppo", "merge", "evaluate", "upload"):
        recipe[stage] = {key: value for key, value in (recipe[stage] or {}).items() if key not in _SIZES}
    settings = {**recipe, "stages": plan.stages, "data_hash": data, "version": VERSION}
    if plan.start:
        settings["start"] = plan.start.model_dump(mode="json")
    return fingerprint.compute("run", settings)


class UnchangedOperator(BaseOperator):
    """Operator that ends a scheduled run early if an earlier one has trained the same.

    It skips itself in runs that a user triggered, and where the recipe's ``skip_unchanged`` is false.

    Returns:
        ``{"fingerprint": str or None, "unchanged_since": run id or None}``.
    """

    ui_color = "#eeeeee"

    def execute(self, context: Context) -> dict[str, Any]:
        """Compare."""
        plan, ti = plan_of(context), context["ti"]
        if not plan.recipe.skip_unchanged:
            raise AirflowSkipException("skip_unchanged is false in the recipe")
        output: Any = ti.xcom_pull(task_ids=PREPARE) or {}
        found = fingerprint_of(plan, output.get("result"))
        # Of a manual run only the fingerprint is of use, to the next night.
        since = self._trained_by(context, found) if found and is_scheduled(context) else None
        if since and plan.force_stages:
            self.log.info(
                "nothing has changed since run %s has trained, but force_stages names %s: this run trains again",
                since, ", ".join(plan.force_stages),
            )  # fmt: skip
            since = None
        if since:
            self.log.info(
                "nothing has changed since run %s has trained: the remaining stages are skipped. To train again "
                "nevertheless, trigger the DAG (a backfill: with force_stages in its configuration), or set "
                "skip_unchanged: false in include/recipes/%s.yaml",
                since, plan.recipe.name,
            )  # fmt: skip
        return {"fingerprint": found, UNCHANGED: since}

    def _trained_by(self, context: Context, fingerprint: str) -> str | None:
        """Return the id of the newest earlier run if it has the same fingerprint."""
        trained = of_previous_run(context["ti"], TRAINED_XCOM)
        if not trained or trained["fingerprint"] != fingerprint:
            return None
        return str(trained["run_id"])


def of_previous_run(ti: Any, key: str) -> Any:
    """Return an XCom of the summary of the newest earlier run that has succeeded; None where there is none.

    Earlier is a run with an earlier logical date; a run that was triggered without one is not found. An XCom of prior
    dates (``include_prior_dates``) would be of any run, the current one included, and without an order.

    Args:
        ti: The task instance of this run.
        key: Key of the XCom.
    """
    run = ti.get_previous_dagrun(state="success")
    return ti.xcom_pull(task_ids=SUMMARY, key=key, run_id=run.run_id) if run else None
