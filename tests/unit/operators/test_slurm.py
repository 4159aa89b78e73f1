"""The templates of SlurmSubmitOperator; its jobs are tested in tests/operators."""

from __future__ import annotations

import pytest

from llm_bridge.exceptions import ConfigError
from llm_bridge.operators.slurm import SlurmSubmitOperator


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
