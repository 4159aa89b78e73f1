"""Every message survives its way to the login node and back, as JSON."""

from __future__ import annotations

import inspect
import json
from typing import Any, get_args, get_type_hints

import pytest

from llm_bridge.remote import attempt_dir, messages
from llm_bridge.remote.messages import decode, encode

Record = tuple[Any, ...]


def is_message(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, tuple) and hasattr(kind, "_fields")


MESSAGES = sorted(
    (kind for kind in vars(messages).values() if is_message(kind)), key=lambda kind: str(kind.__name__)
)


def filled(kind: Any, depth: int = 0) -> Any:
    """Return a message in which every field has a value of its declared type, other than the default."""
    return kind(
        **{
            name: value_of(f"{kind.__name__}.{name}", hint, depth)
            for name, hint in get_type_hints(kind).items()
        }
    )


def value_of(name: str, hint: Any, depth: int) -> Any:
    inner = [argument for argument in get_args(hint) if argument is not type(None)]
    if is_message(hint):
        return filled(hint, depth + 1)
    if hint is Any:
        return {"any": [1, "x", None]}
    if "Sequence" in str(hint) and "Optional" not in str(hint):
        # A stage has further stages; those have none.
        return [] if depth > 1 else [value_of(name, inner[0], depth + 1), value_of(name, inner[0], depth + 1)]
    if "Dict" in str(hint) and "Optional" not in str(hint):
        return {"key": value_of(name, inner[1], depth)}
    if inner:
        return value_of(name, inner[0], depth)
    samples: dict[Any, Any] = {str: f"ü {name}", int: 7, float: 2.5, bool: True}
    return samples[hint]


def test_the_messages_are_found() -> None:
    assert {messages.SubmitRequest, messages.JobNews, messages.CheckAnswer} <= set(MESSAGES)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_a_message_with_all_its_fields_is_the_same_after_encoding_json_and_decoding(kind: Any) -> None:
    message = filled(kind)
    back = decode(kind, json.loads(json.dumps(encode(message))))
    assert back == message and type(back) is kind
    assert shape(back) == shape(message)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_a_message_with_its_required_fields_alone_is_the_same_after_encoding_json_and_decoding(
    kind: Any,
) -> None:
    complete = filled(kind)
    required = {name: getattr(complete, name) for name in kind._fields if name not in kind._field_defaults}
    back = decode(kind, json.loads(json.dumps(encode(kind(**required)))))
    for name in kind._fields:
        given = getattr(kind(**required), name)
        assert getattr(back, name) == (list(given) if given == () else given), name


def shape(value: Any) -> Any:
    """Return the types of a message and of all messages in it: a tuple equals a message with the same values."""
    if is_message(type(value)):
        return type(value), [shape(inner) for inner in value]
    if isinstance(value, list | tuple):
        return [shape(inner) for inner in value]
    return None


def test_a_field_that_a_newer_version_has_added_is_dropped() -> None:
    assert decode(messages.AttemptJob, {"job_id": "7", "directory": "/w", "colour": "red"}) == ("7", "/w")


def test_a_message_without_a_required_field_is_refused() -> None:
    with pytest.raises(TypeError):
        decode(messages.AttemptJob, {"job_id": "7"})


def test_the_files_of_an_existing_result_are_read_in_their_shapes() -> None:
    found = messages.FoundResult(
        "7", "/w", attempt_dir.Started("7", 1.0, "n1"), attempt_dir.Outcome(0, 2.0), {"rows": 3}
    )
    answer = decode(messages.SubmitAnswer, encode(messages.SubmitAnswer(messages.REUSED, result=found)))
    assert isinstance(answer.result.started, attempt_dir.Started)
    assert isinstance(answer.result.outcome, attempt_dir.Outcome)
