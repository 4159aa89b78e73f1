"""One shape for everything that is wrong with what a user wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


class ConfigError(AirflowFailException):
    """A cluster file, a recipe, a form field or a job description is wrong.

    Derives from ``AirflowFailException`` because a retry cannot help: the task fails at its first try.
    """


def explain(error: ValidationError, model: type[BaseModel], source: str) -> ConfigError:
    """Turn pydantic's findings into one message that names file, key, value and what is allowed.

    :param error: what ``model`` raised.
    :param model: the model that was validated; its field names are the allowed keys.
    :param source: what the user has to open, a file name or "the trigger form".
    """
    lines = [f"{source}: {error.error_count()} thing(s) to put right:"]
    for finding in error.errors():
        key = ".".join(str(part) for part in finding["loc"]) or "(whole file)"
        lines.append(f"  - {key}: {_sentence(finding, model)}")
    return ConfigError("\n".join(lines))


def _sentence(finding: Any, model: type[BaseModel]) -> str:
    kind, value = finding["type"], finding.get("input")
    if kind == "extra_forbidden":
        allowed = ", ".join(sorted(_fields_at(model, finding["loc"][:-1])))
        return f"no such key. Allowed here: {allowed}"
    if kind == "missing":
        return "this key is required"
    message = finding["msg"].removeprefix("Value error, ")
    return f"{message} (got {value!r})"


def _fields_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The keys that the nested model at ``path`` accepts."""
    current: Any = model
    for part in path:
        field = getattr(current, "model_fields", {}).get(str(part))
        if field is None:
            return []
        current = next((t for t in _inner_types(field.annotation) if hasattr(t, "model_fields")), None)
    return list(getattr(current, "model_fields", {}))


def _inner_types(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", ())
    return [annotation, *(t for a in arguments for t in _inner_types(a))]
