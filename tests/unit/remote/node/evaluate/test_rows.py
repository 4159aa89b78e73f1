"""The rows of an evaluation, and their prompts as tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.evaluate import rows


class Tokenizer:
    """One token per character of the last message."""

    def apply_chat_template(self, prompt: Any, **options: Any) -> list[int]:
        assert options.pop("add_generation_prompt") and options.pop("tokenize")
        assert not options.pop("return_dict")
        return [1] * len(prompt[-1]["content"]) + [2] * len(options)


def row(number: int, text: str) -> dict[str, Any]:
    return {"number": number, "prompt": [{"role": "user", "content": text}]}


def test_the_seed_draws_the_rows_and_they_keep_their_order() -> None:
    drawn = rows.draw(1000, 50, seed=3)
    assert drawn == sorted(set(drawn)) and len(drawn) == 50
    assert rows.draw(1000, 50, seed=3) == drawn != rows.draw(1000, 50, seed=4)


@pytest.mark.parametrize("wanted", [None, 5, 6])
def test_a_split_that_is_not_larger_is_used_whole(wanted: int | None) -> None:
    assert rows.draw(5, wanted, seed=0) == [0, 1, 2, 3, 4]


def test_rows_that_do_not_fit_are_left_out_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    kept, prompts = rows.tokenize([row(0, "abc"), row(1, "abcdef")], Tokenizer(), {}, 4)
    assert [each["number"] for each in kept] == [0] and prompts == [[1, 1, 1]]
    assert "1 of 2 rows are left out: their prompts have more than 4 tokens" in capsys.readouterr().out


def test_the_template_gets_the_options_of_verl() -> None:
    _, prompts = rows.tokenize([row(0, "a")], Tokenizer(), {"enable_thinking": False}, None)
    assert prompts == [[1, 2]]


def test_prompts_that_never_fit_are_an_error_with_the_numbers() -> None:
    with pytest.raises(JobError, match=r"the longest one has 9 tokens, and 4 fit .* Lower evaluate"):
        rows.tokenize([row(0, "a" * 9)], Tokenizer(), {}, 4)


def test_the_context_of_a_model_is_known_only_if_its_configuration_says_it(tmp_path: Path) -> None:
    assert rows.context_length(tmp_path) is None
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 512}')
    assert rows.context_length(tmp_path) == 512


def test_a_conversation_of_sft_is_answered_up_to_its_last_answer() -> None:
    said = [{"role": role, "content": role[0]} for role in ("user", "assistant", "user", "assistant")]
    made = rows._row(0, {"messages": said, "data_source": "d"}, Path("t"))
    assert made["prompt"] == said[:3] and made["ground_truth"] is None


@pytest.mark.parametrize("content", [{}, {"messages": [{"role": "user", "content": "u"}]}, {"prompt": []}])
def test_a_row_without_a_prompt_is_named(content: dict[str, Any]) -> None:
    with pytest.raises(JobError, match=r"row 3 of /w/t has no prompt to answer"):
        rows._row(3, content, Path("/w/t"))


def test_the_prompts_have_the_template_of_the_training_and_leave_room_for_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 10}')
    monkeypatch.setattr(rows, "read", lambda *_: [row(0, "aaa"), row(1, "aaaaaaa")])
    loaded: Any = Tokenizer()
    monkeypatch.setattr(rows.loadable, "load_tokenizer", lambda *_, **__: loaded)
    settings = {"test_file": str(tmp_path / "t"), "rows": None, "seed": 0, "tokenizer": str(tmp_path)}
    settings |= {"trust_remote_code": False, "chat_template": "{{ x }}", "template_options": {}}
    kept, prompts = rows.with_prompts({**settings, "decoding": {"max_tokens": 6}})
    assert len(kept) == 1 and prompts == [[1, 1, 1]] and loaded.chat_template == "{{ x }}"
