"""Tasks between evaluation and upload: the gate, and a person's approval in Airflow.

Both decide, and the task ``upload.run`` skips itself where one of them refused: the log of the task that did not run
says why, and clearing it asks them again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from llm_bridge.pipeline.gate import NAMES, decide
from llm_bridge.pipeline.plan import Plan, plan_of, skip_unless_selected
from llm_bridge.remote.node.evaluate import report

if TYPE_CHECKING:
    from airflow.sdk import Context

EVALUATE, GATE, APPROVAL = "evaluate.run", "upload.gate", "upload.approval"
APPROVE, REJECT = "Approve", "Reject"
# Samples on the approval page.
SHOWN = 5
SHOWN_LENGTH = 600


class GateOperator(BaseOperator):
    """Operator that decides by the recipe's ``publish`` and the evaluation; a refusal is no failure.

    Returns:
        ``{"publish": bool, "reason": str}``.
    """

    ui_color = "#eeeeee"

    def execute(self, context: Context) -> dict[str, Any]:
        """Decide; skip where there is nothing to decide."""
        plan = plan_of(context)
        skip_unless_selected(plan, "upload")
        if not plan.recipe.publish.needs_evaluation:
            raise AirflowSkipException("publish in the recipe has no condition on the score")
        decision = decide(plan.recipe.publish, plan.final, evaluation_of(context))
        self.log.info("%s", decision.reason)
        return decision._asdict()


class ApprovalTask(HITLOperator):
    """Operator that waits until a person approves or rejects the model, with its scores and samples on the page.

    Without ``approval_hours`` it waits for ever. It occupies neither a worker nor the triggerer meanwhile.

    Returns:
        ``{"publish": bool, "reason": str}``.
    """

    ui_color = "#eeeeee"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            subject="Publish this model on the Hub?",
            options=[APPROVE, REJECT],
            body="The scores and samples of the model are here once the task runs.",
            **kwargs,
        )

    def execute(self, context: Context) -> Any:
        """Ask; skip where the recipe wants no approval, or the gate has refused the model."""
        plan = plan_of(context)
        skip_unless_selected(plan, "upload")
        if not plan.recipe.publish.approval:
            raise AirflowSkipException("publish in the recipe needs no approval")
        decision = context["ti"].xcom_pull(task_ids=GATE)
        if decision and not decision["publish"]:
            raise AirflowSkipException(decision["reason"])
        self.subject = f"Publish the {NAMES[plan.final]} of run {plan.run_name} as {plan.recipe.hub.repo_id}?"
        self.body = page(plan, evaluation_of(context), decision)
        if hours := plan.recipe.publish.approval_hours:
            # The default answer is the one that is taken then.
            self.response_timeout, self.defaults = timedelta(hours=hours), [REJECT]
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Return the answer as a decision."""
        answer = super().execute_complete(context, event)
        user = (answer["responded_by_user"] or {}).get("name")
        if answer["chosen_options"] == [APPROVE]:
            return {"publish": True, "reason": f"approved by {user}"}
        hours = plan_of(context).recipe.publish.approval_hours
        why = f"{user} rejected it" if user else f"nobody approved it within {hours:g} hours"
        return {"publish": False, "reason": f"not published because {why}"}


def refusal(context: Context) -> str | None:
    """Return why the model of this run is not published; None if it may be."""
    for task in (GATE, APPROVAL):
        decision = context["ti"].xcom_pull(task_ids=task)
        if decision and not decision["publish"]:
            return str(decision["reason"])
    return None


def evaluation_of(context: Context) -> dict[str, Any] | None:
    """Return the evaluation of the run; None where it has none."""
    output: Any = context["ti"].xcom_pull(task_ids=EVALUATE) or {}
    found = (output.get("result") or {}).get("evaluation")
    return report.in_order(found) if found else None


def page(plan: Plan, evaluation: dict[str, Any] | None, decision: dict[str, Any] | None) -> str:
    """Return the text of the approval page, as Markdown.

    Args:
        plan: The run's plan.
        evaluation: The run's evaluation.
        decision: The gate's decision.
    """
    lines = [
        f"Recipe **{plan.recipe.name}**, base model {plan.recipe.base_model}, run {plan.run_name}.",
        "",
        f"The model is in `{plan.final_model}` on the cluster {plan.cluster}.",
    ]
    if decision:
        lines += ["", f"Gate: {decision['reason']}."]
    if not evaluation:
        return "\n".join([*lines, "", "This run has no evaluation (recipe key `evaluate`)."])
    lines += [
        "",
        f"Metric {evaluation['metric']} on {evaluation['rows']} held-out rows, 95 % intervals:",
        "",
        "| model | score | interval | tokens per answer | cut |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in evaluation["models"].items():
        low, high = found["interval"]
        lines.append(
            f"| {NAMES[name]} | {found['score']:.4f} | {low:.4f} to {high:.4f} | {found['length_mean']:.0f} "
            f"| {found['cut_share']:.1%} |"
        )
    lines += ["", "| difference | mean | interval |", "| --- | --- | --- |"]
    for name, found in evaluation["differences"].items():
        low, high = found["interval"]
        lines.append(f"| {name} | {found['mean']:+.4f} | {low:+.4f} to {high:+.4f} |")
    for number, sample in enumerate(evaluation["samples"][:SHOWN], 1):
        lines += [
            "",
            f"### Sample {number}",
            "",
            *_quoted(sample["prompt"]),
            "",
            f"Truth: {_inline(sample['truth'])}",
        ]
        for name, answer in sample["answers"].items():
            lines += ["", f"**{NAMES[name]}**, score {answer['score']:g}:", "", *_quoted(answer["text"])]
    return "\n".join(lines)


def _quoted(text: str) -> list[str]:
    """Return a text as an indented block, in which nothing has a meaning in Markdown."""
    if not text.strip():
        # Markdown drops such a block: the page would show nothing.
        return ["    (only white space)" if text else "    (empty)"]
    cut = text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]} ..."
    return [f"    {line}" for line in cut.splitlines()]


def _inline(text: str) -> str:
    return "`" + " ".join(text.replace("`", "'").split())[:SHOWN_LENGTH] + "`"
