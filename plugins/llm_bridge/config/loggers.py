"""Loggers that a recipe names with ``logger``: those of verl 0.9.1 (``Tracking.supported_backend``)."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator

Name = Literal[
    "console",
    "wandb",
    "trackio",
    "tensorboard",
    "mlflow",
    "swanlab",
    "clearml",
    "vemlp_wandb",
    "rl_insight",
    "file",
]
LOGGERS: tuple[Name, ...] = get_args(Name)

# Other names of them, in lower case and without anything but letters.
_ALSO = {
    "weightsandbiases": "wandb",
    "weightsbiases": "wandb",
    "wb": "wandb",
    "tracking": "wandb",
    "tb": "tensorboard",
    "stdout": "console",
    "print": "console",
    "log": "console",
    "json": "file",
    "jsonl": "file",
}


def _check(value: Any) -> Any:
    if value in LOGGERS:
        return value
    plain = "".join(letter for letter in str(value).lower() if letter.isalpha())
    similar = (
        [_ALSO[plain]] if plain in _ALSO else difflib.get_close_matches(str(value).lower(), LOGGERS, n=1)
    )
    hint = f"did you mean {similar[0]!r}? " if similar else ""
    raise ValueError(f"no such logger: {hint}Choose from {', '.join(LOGGERS)}")


def _is_list(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"must be a list, such as [console, {value if value in LOGGERS else 'wandb'}]")
    return value


def _different(value: list[str]) -> list[str]:
    if twice := sorted({name for name in value if value.count(name) > 1}):
        raise ValueError(f"each logger may stand once: {', '.join(twice)} stands twice")
    return value


Logger = Annotated[Name, BeforeValidator(_check)]
Loggers = Annotated[list[Logger], BeforeValidator(_is_list), AfterValidator(_different)]
