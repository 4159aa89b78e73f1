"""The templates of SlurmSubmitOperator, and what a teardown says of jobs; real jobs are in tests/operators."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException

from llm_bridge.exceptions import ConfigError
from llm_bridge.operators import slurm
from llm_bridge.operators.slurm import SlurmCancelOperator, SlurmSubmitOperator
from llm_bridge.slurm.status import JobInfo


def rendered(script: str) -> str:
    operator = SlurmSubmitOperator(task_id="t", cluster="c", script=script)
    again = SlurmSubmitOperator(task_id="t", cluster="c", script=operator.script)
    again.render_template_fields({"ds": "2026-11-27"})  # type: ignore[typeddict-item]
    assert again.script is not None
    return again.script


@pytest.mark.parametrize(
    "line",
    [
        'files=(a b); echo "${#files[@]}"',
        "echo ${#name} ${#other}  # a comment #} and on",
        "echo ${name%%.*} ${name#*/} $# {a,b}",
    ],
)
def test_lengths_of_bash_are_no_comments_of_jinja(line: str) -> None:
    assert rendered(f"#!/bin/bash\n{line}") == f"#!/bin/bash\n{line}"


def test_templates_are_rendered_and_raw_text_is_unchanged() -> None:
    script = "#!/bin/bash\necho {{ ds }} {% raw %}${#a[@]} {{ x }}{% endraw %}{# gone #}"
    assert rendered(script) == "#!/bin/bash\necho 2026-11-27 ${#a[@]} {{ x }}"


def test_a_script_that_jinja_cannot_read_is_refused_with_the_way_out() -> None:
    with pytest.raises(
        ConfigError, match=r"task 't': Jinja cannot render .*, line 2: .*between {% raw %} and"
    ):
        rendered("#!/bin/bash\necho {{ a b }}\n")


@pytest.mark.parametrize(("state", "fails"), [("COMPLETING", False), ("RUNNING", True), ("SUSPENDED", True)])
def test_a_teardown_fails_for_a_job_that_slurm_is_not_ending(
    monkeypatch: pytest.MonkeyPatch, state: str, fails: bool
) -> None:
    async def close_attempts(cluster: str, directory: str) -> list[str]:
        return ["7", "8"]

    async def cancel_and_wait(cluster: str, ids: list[str], seconds: float) -> dict[str, JobInfo]:
        return {"8": JobInfo("8", state)}

    monkeypatch.setattr(slurm, "close_attempts", close_attempts)
    monkeypatch.setattr(slurm, "cancel_and_wait", cancel_and_wait)
    down = SlurmCancelOperator(task_id="down", stage=lambda context: ("c", "/w/s"))
    context: Any = {}
    if fails:
        with pytest.raises(AirflowException, match="Slurm job 8 on cluster 'c' has not ended 120 s after"):
            down.execute(context)
    else:
        assert down.execute(context) == ["7", "8"]
