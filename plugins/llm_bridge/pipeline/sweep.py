"""Sweep: one run of post_training for each combination of settings, some at once, and their comparison."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.providers.standard.triggers.external_task import DagStateTrigger
from airflow.sdk import DAG, BaseOperator, Param
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from airflow.utils.state import DagRunState

from llm_bridge import notifications
from llm_bridge.config import sweep
from llm_bridge.config.recipe_keys import KEYS
from llm_bridge.exceptions import ConfigError
from llm_bridge.naming import slug
from llm_bridge.operators.exceptions import logs_config_errors
from llm_bridge.pipeline.form import form
from llm_bridge.pipeline.plan import make_plan
from llm_bridge.pipeline.summary import table
from llm_bridge.triggers.turn import TurnTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

TARGET = "post_training"
PLAN, RUN, COMPARE = "plan", "run", "compare"
MAX_AT_ONCE = 16
# Fields of the form of post_training that a sweep has, too: the same for all its runs.
SHARED = ("recipe", "cluster", *KEYS, "stages", "start_stage", "start_from", "overrides")
ENDED = ("success", "failed")
# Run page of the API server, as in ui/app.py.
COMPARE_PAGE = "llm-bridge/runs"


def sweep_post_training() -> DAG:
    """Build the DAG ``sweep_post_training``."""
    with DAG(
        "sweep_post_training",
        description="Post-training with each combination of some settings, and their comparison",
        schedule=None,
        start_date=datetime(2026, 1, 1),
        catchup=False,
        is_paused_upon_creation=True,
        params=sweep_form(),
        tags=["llm-bridge"],
        doc_md=__doc__,
    ) as dag:
        plan = PlanSweepOperator(task_id=PLAN, **notifications.for_tasks())
        # Without alerts: each run sends its own.
        runs = SweepRunOperator.partial(
            task_id=RUN, retries=2, retry_delay=timedelta(minutes=1), map_index_template="{{ task.point }}"
        ).expand_kwargs(plan.output)
        compare = CompareSweepOperator(
            task_id=COMPARE, trigger_rule="all_done", **notifications.for_last_task()
        )
        plan >> runs >> compare
        plan >> compare
    return dag


def sweep_form() -> dict[str, Param]:
    """Return the fields of the trigger form."""
    shared = form()
    return {
        "recipe": shared["recipe"],
        "cluster": shared["cluster"],
        "sweep": Param(
            f"{sweep.EXAMPLE}\nppo.actor_rollout_ref.rollout.n = 4, 8",
            type="string",
            format="multiline",
            title="Grid",
            description=(
                "One line a setting: KEY = VALUE, VALUE, ... Each combination is a run, of at most "
                f"{sweep.MAX_POINTS}. Keys are those of the other fields (ppo.algorithm, data.max_rows), those of "
                "Overrides (sft.KEY, ppo.KEY), recipe, base_model and nodes."
            ),
        ),
        "at_once": Param(
            2,
            type="integer",
            minimum=1,
            maximum=MAX_AT_ONCE,
            title="Runs at once",
            description="The others wait until one of these has ended.",
        ),
        **{name: shared[name] for name in SHARED if name not in ("recipe", "cluster")},
    }


def run_ids(sweep_run: str, count: int) -> list[str]:
    """Return the ids of a sweep's runs, always the same ones, so that a retry finds them.

    Args:
        sweep_run: Id of the sweep's own run.
        count: Number of its points.
    """
    return [f"sweep__{slug(sweep_run)}__{number:02d}" for number in range(1, count + 1)]


class PlanSweepOperator(BaseOperator):
    """Operator that reads the grid, and checks the plan of every run before one starts.

    Returns:
        Arguments of :class:`SweepRunOperator`, a mapping for each point.

    Raises:
        ConfigError: Names the lines of the grid, or the points, that cannot be used.
    """

    ui_color = "#eeeeee"

    @logs_config_errors
    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Read the grid."""
        params: dict[str, Any] = dict(context["params"])
        ti: Any = context["ti"]
        points = sweep.parse(params.get("sweep") or "")
        found: list[dict[str, Any]] = []
        errors: dict[str, str] = {}
        for point, run_id in zip(points, run_ids(ti.run_id, len(points)), strict=True):
            conf = conf_of(params, point, run_id)
            try:
                plan = make_plan(conf, TARGET, run_id)
                if "evaluate" not in plan.stages:
                    log.warning("%s: this run is not evaluated, so it has no score", point.text)
            except ConfigError as error:
                errors.setdefault(str(error), point.text)
            found.append({"trigger_run_id": run_id, "conf": conf, "point": point.text})
        if errors:
            lines = "".join(f"\n  - {text}: {error}" for error, text in errors.items())
            raise ConfigError(f"{len(errors)} errors, no run was started:{lines}")
        for each in found:
            log.info("%s: %s", each["trigger_run_id"], each["point"])
        return found


def conf_of(params: dict[str, Any], point: sweep.Point, run_id: str) -> dict[str, Any]:
    """Return the trigger form of a point's run.

    Args:
        params: The sweep's form.
        point: The point.
        run_id: The point's run.
    """
    conf = {name: params[name] for name in SHARED if params.get(name)}
    lines = [line for line in (conf.pop("overrides", None), point.overrides) if line]
    conf |= point.fields
    if "nodes" in conf:
        conf["nodes"] = int(conf["nodes"]) if str(conf["nodes"]).isdigit() else conf["nodes"]
    if lines:
        conf["overrides"] = "\n".join(lines)
    return {**conf, "run_name": f"{run_id[-60:]} {point.text}"[:100]}


class SweepRunOperator(TriggerDagRunOperator):
    """Operator that runs post_training for a point, when it is its turn, and waits for its end.

    A retry, and a clear, find the run of the first try: a point never has two. A run that failed is cleared by itself;
    then clear this task, which waits for it.

    Args:
        point: The settings, for people.
        **kwargs: See ``TriggerDagRunOperator``.
    """

    # Nothing is a template: what a user types is data.
    template_fields: Sequence[str] = ()

    def __init__(self, *, point: str = "", **kwargs: Any) -> None:
        given = {
            "trigger_dag_id": TARGET,
            "wait_for_completion": True,
            "deferrable": True,
            "poke_interval": 15,
            "logical_date": None,
            "fail_when_dag_is_paused": True,
            **kwargs,
        }
        super().__init__(**given)
        self.point = point

    def execute(self, context: Context) -> None:
        """Start the run if it is the point's turn, else wait for it."""
        ti: Any = context["ti"]
        run_id = str(self.trigger_run_id)
        if ti.get_dr_count(dag_id=TARGET, run_ids=[run_id]):
            return self._follow(ti, run_id)
        at_once = int(context["params"]["at_once"])
        turn = TurnTrigger(ti.dag_id, ti.run_id, ti.task_id, ti.map_index, at_once)
        if not turn.is_turn():
            self.log.info("%s waits until fewer than %d runs before it are active", self.point, at_once)
            self.defer(trigger=turn, method_name="execute_turn")
        # A user may have ended the sweep after this task was scheduled.
        if (state := _text(ti.get_dagrun_state(dag_id=ti.dag_id, run_id=ti.run_id))) != "running":
            raise AirflowSkipException(f"the sweep is {state}: no more runs are started")
        self.log.info("starting run %s of %s: %s", run_id, TARGET, self.point)
        super().execute(context)
        return None

    def execute_turn(self, context: Context, event: dict[str, Any]) -> None:
        """Start the run; it is the point's turn."""
        self.execute(context)

    def execute_complete(self, context: Context, event: tuple[str, dict[str, Any]]) -> None:
        """Finish after the run's end.

        Raises:
            AirflowFailException: The run failed. No retry follows: the run has had its own.
        """
        run_id = str(self.trigger_run_id)
        self._finish(run_id, _text(event[1].get(run_id)))

    def _follow(self, ti: Any, run_id: str) -> None:
        state = _text(ti.get_dagrun_state(dag_id=TARGET, run_id=run_id))
        self.log.info("run %s exists already: %s", run_id, state)
        ti.xcom_push(key="trigger_run_id", value=run_id)
        if state in ENDED:
            return self._finish(run_id, state)
        states = [DagRunState.SUCCESS, DagRunState.FAILED]
        trigger = DagStateTrigger(dag_id=TARGET, states=states, run_ids=[run_id], poll_interval=15)
        self.defer(trigger=trigger, method_name="execute_complete")
        return None

    def _finish(self, run_id: str, state: str) -> None:
        if state != "success":
            raise AirflowFailException(
                f"run {run_id} of {TARGET} is {state}: its task summary says why. Clear its failed tasks, then this "
                "task"
            )
        self.log.info("run %s has succeeded", run_id)


class CompareSweepOperator(BaseOperator):
    """Operator that compares the runs, and marks the best one: that with the highest score of its last model.

    Returns:
        ``{"runs": [{"run_id", "settings", "state", "score", "interval", "scores", "gpu_hours", "changes"}],
        "best": run id or None, "compare": path of the run page}``.

    Raises:
        AirflowFailException: No run has succeeded.
    """

    ui_color = "#eeeeee"

    def execute(self, context: Context) -> dict[str, Any]:
        """Compare."""
        ti: Any = context["ti"]
        planned = ti.xcom_pull(task_ids=PLAN)
        if not planned:
            raise AirflowFailException("there is no grid: see the log of the task plan")
        rows = [self._row(ti, each) for each in planned]
        best = best_of(rows)
        for line in table_of(rows, best):
            self.log.info("%s", line)
        chosen = [("compare", json.dumps([TARGET, row["run_id"]])) for row in rows if row["state"] in ENDED]
        path = f"{COMPARE_PAGE}?{urlencode(chosen)}"
        self.log.info(
            "scores, settings and curves side by side, below the address of this Airflow: /%s", path
        )
        result = {"runs": rows, "best": best, "compare": path}
        ti.xcom_push(key="summary", value=result)
        if not any(row["state"] == "success" for row in rows):
            raise AirflowFailException("no run has succeeded: their tasks summary say why")
        return result

    def _row(self, ti: Any, planned: dict[str, Any]) -> dict[str, Any]:
        run_id = planned["trigger_run_id"]
        row = {"run_id": run_id, "settings": planned["point"], "state": "not started", "score": None}
        row |= {"interval": None, "scores": {}, "gpu_hours": None, "changes": []}
        if not ti.get_dr_count(dag_id=TARGET, run_ids=[run_id]):
            return row
        row["state"] = _text(ti.get_dagrun_state(dag_id=TARGET, run_id=run_id))
        found = ti.xcom_pull(dag_id=TARGET, task_ids="summary", key="summary", run_id=run_id) or {}
        models = (found.get("evaluation") or {}).get("models") or {}
        row["scores"] = {name: model["score"] for name, model in models.items()}
        if last := models.get("rl") or models.get("sft"):
            row |= {"score": last["score"], "interval": last.get("interval")}
        return row | {"gpu_hours": found.get("gpu_hours"), "changes": found.get("changes") or []}


def best_of(rows: Sequence[dict[str, Any]]) -> str | None:
    """Return the id of the run with the highest score, of equal ones that with the fewest GPU-hours; None without one.

    Args:
        rows: The runs, with ``state``, ``score`` and ``gpu_hours``.
    """
    scored = [row for row in rows if row["state"] == "success" and row["score"] is not None]
    ranked = sorted(scored, key=lambda row: (-row["score"], row["gpu_hours"] or 0.0))
    return str(ranked[0]["run_id"]) if ranked else None


def table_of(rows: Sequence[dict[str, Any]], best: str | None) -> list[str]:
    """Return the comparison as lines of text.

    Args:
        rows: The runs.
        best: Id of the best one.
    """
    lines = [
        {
            "run": row["run_id"].rpartition("__")[2],
            "settings": row["settings"],
            "state": row["state"],
            "score": _number(row["score"]),
            "95 % interval": " to ".join(map(_number, row["interval"] or ())),
            "base": _number(row["scores"].get("base")),
            "GPU-hours": _number(row["gpu_hours"]),
            "": "<- best" if row["run_id"] == best else "",
        }
        for row in rows
    ]
    return table(lines, tuple(lines[0]))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _text(state: Any) -> str:
    return str(getattr(state, "value", state))  # str() of an enumeration is its name
