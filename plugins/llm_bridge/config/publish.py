"""The recipe's ``publish``: conditions that a model has to fulfil before it is uploaded.

Forms: ``always``, ``approval``, ``never``, or conditions, all of which must hold:
``{min_score: NUMBER, better_than: base | sft | published, approval: true, approval_hours: NUMBER}``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from llm_bridge.config.types import FrozenModel, Hours

# Forms of one word.
Short = Literal["always", "approval", "never"]
FORMS = (
    "always, approval, never, or conditions such as {min_score: 0.4}, {better_than: base}, {better_than: sft}, "
    "{better_than: published}, which may stand together and with approval: true"
)


class Publish(FrozenModel):
    """Conditions of a publication; without any, every model is published.

    Attributes:
        min_score: Lowest mean score of the model.
        better_than: Model whose score must be exceeded, by the lower bound of the paired difference.
        approval: Ask a person in Airflow before publishing.
        never: Publish no model: the stage upload does not run.
    """

    # strict: "yes" in YAML is True, which would be 1.0.
    min_score: float | None = Field(default=None, strict=True, allow_inf_nan=False)
    better_than: Literal["base", "sft", "published"] | None = None
    approval: bool = False
    never: bool = False
    approval_hours: Hours | None = Field(
        default=None,
        description="time after which a model that nobody approved is not published; none when empty",
    )

    @property
    def needs_evaluation(self) -> bool:
        """True if a condition compares scores."""
        return self.min_score is not None or self.better_than is not None

    @property
    def has_conditions(self) -> bool:
        """True unless every model is published."""
        return self.needs_evaluation or self.approval

    @model_validator(mode="after")
    def _never_has_no_conditions(self) -> Publish:
        if self.never and self.has_conditions:
            raise ValueError("never publishes no model: remove the conditions beside it, or never")
        return self

    @model_validator(mode="after")
    def _hours_of_an_approval(self) -> Publish:
        if self.approval_hours is not None and not self.approval:
            raise ValueError(
                "approval_hours limits the wait for an approval: set approval: true, or remove it"
            )
        return self


def read_publish(value: Any) -> Any:
    """Return a recipe's ``publish`` as the fields of :class:`Publish`.

    Raises:
        ValueError: Names the forms that are valid.
    """
    if value is None or value == "always":
        return {}
    if value in ("approval", "never"):
        return {value: True}
    if not isinstance(value, dict | Publish):
        raise ValueError(f"expected {FORMS}")
    return value
