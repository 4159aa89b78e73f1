"""Value types of cluster files, recipes and job specifications."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from llm_bridge.config import types

NO_HUB_IDS = (
    *("me/my--model", "me/model-", "me/a..b", "me/model.git", "me/.model", "-me/m", "me/m.", "m--e/m"),
    *("model", "me/a/b", "me/", "me/mödel", "me/m\n", "me/a b", "me/" + "b" * 97, "me/m;rm", "me/${x}"),
)


def check(kind: Any, value: Any) -> Any:
    return TypeAdapter(kind).validate_python(value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (types.SlurmWord, "gpu[01-04,7]&a|b*"),
        (types.TimeLimit, "1-12:30:15"),
        (types.TimeLimit, "90"),
        (types.Memory, "64G"),
        (types.Memory, "0"),
        (types.Text, "two words – ü"),
        (types.UrlTemplate, "https://proxy/{host}/{port}/"),
        (types.VariableName, "_NCCL_DEBUG2"),
        (types.Count, 100_000),
        (types.Hours, 0.5),
        *((types.CronLine, text) for text in ("0 22 * * 1-5", "0 2 29 2 *", "@daily")),
        *((types.HubId, text) for text in ("me/m", "_me/m_", "0/Llama-3.2_1B.v2", "a" * 96 + "/" + "b" * 96)),
        *((types.HubIdOrPath, text) for text in ("me/m", "/models/my--model.git", "/a..b")),
    ],
)
def test_a_valid_value_is_unchanged(kind: Any, value: Any) -> None:
    assert check(kind, value) == value


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *((types.SlurmWord, text) for text in ("", "a b", "$x", "a\n", "'", "é", "x" * 1001)),
        *((types.TimeLimit, text) for text in ("", "1:2", "1h", "1-", 7200)),
        *((types.Memory, text) for text in ("64GB", "-1", "")),
        *((types.Text, text) for text in ("a\nb", "\x00")),
        *((types.AbsolutePath, text) for text in ("a", "~/x", "/a/../b", "/a\n", "")),
        *(
            (types.UrlTemplate, text)
            for text in ("http://{host}", "{host}:{port}", "http://{host}:{port}/{x}")
        ),
        *((types.VariableName, text) for text in ("1A", "A-B", "A=1", "A\n")),
        *((types.Count, number) for number in (0, -1, 100_001)),
        *((types.HubId, text) for text in NO_HUB_IDS),
        *(
            (types.HubIdOrPath, text)
            for text in (*NO_HUB_IDS, "/etc/../etc", "/a/.", "/", "/a//b", "/a b", "")
        ),
        *((types.Hours, number) for number in (0, -1, 10_001)),
        *((types.CronLine, text) for text in ("61 2 * * *", "0 2 * *", "0 2 * * * *", "daily", "@once", "")),
        (types.CronLine, "0 2 30 2 *"),  # Airflow shows such a DAG and never runs it
    ],
)
def test_an_invalid_value_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(ValidationError):
        check(kind, value)


@pytest.mark.parametrize(("given", "path"), [("/a/b/", "/a/b"), ("/", "/"), ("/a..b", "/a..b")])
def test_a_path_loses_its_trailing_slash(given: str, path: str) -> None:
    assert check(types.AbsolutePath, given) == path


def test_a_number_as_time_limit_is_refused_with_the_reason() -> None:
    with pytest.raises(ValidationError, match="write it in quotes"):
        check(types.TimeLimit, 7200)


def test_a_model_refuses_unknown_keys_and_changes() -> None:
    class Model(types.FrozenModel):
        key: int = 1

    with pytest.raises(ValidationError, match="Extra inputs"):
        Model.model_validate({"kee": 2})
    with pytest.raises(ValidationError, match="frozen"):
        Model().key = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    "name", ["m", "_m", "m_", "m-", "-m", "m.", ".m", "a--b", "a..b", "a-.b", "m.git", "x" * 97]
)
def test_the_rule_for_repositories_is_that_of_huggingface_hub(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    for text in (f"me/{name}", f"{name}/model"):
        verdicts = []
        for rule in (validate_repo_id, types.hub_id):
            try:
                rule(text)
                verdicts.append(True)
            except (HFValidationError, ValueError):
                verdicts.append(False)
        assert verdicts[0] == verdicts[1], text
