"""Rows in GSM8K's shape as verl reads them; tests/verl converts real files."""

from __future__ import annotations

import pytest

from llm_bridge.remote.node.data import gsm8k


def test_a_row_has_the_columns_of_sft_and_ppo() -> None:
    row = gsm8k.row("How many?", "2 + 2 = 4\n#### 4", "train", 7)
    prompt = {"role": "user", "content": f"How many? {gsm8k.INSTRUCTION}"}
    assert row["prompt"] == [prompt]
    assert row["messages"] == [prompt, {"role": "assistant", "content": "2 + 2 = 4\n#### 4"}]
    assert row["reward_model"] == {"style": "rule", "ground_truth": "4"}
    assert (row["extra_info"]["split"], row["extra_info"]["index"]) == ("train", 7)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("#### 1,234", "1234"),
        ("#### 12,345,678.50", "12345678.50"),
        ("#### -5", "-5"),
        ("#### 1\n#### 2.5", "2.5"),
        ("#### 18 apples", "18"),
        ("#### 50%", "50"),
        ("#### 42\n", "42"),
    ],
)
def test_the_truth_is_the_last_number_without_commas(answer: str, truth: str) -> None:
    row = gsm8k.row("q", answer, "test", 0)
    assert row["reward_model"]["ground_truth"] == truth
    assert row["messages"][1]["content"] == answer, "verl's reward reads the same number: unchanged"


@pytest.mark.parametrize(
    ("answer", "truth", "normalised"),
    [
        ("6 * 7\n#### 42.", "42", "6 * 7\n#### 42"),
        ("####42", "42", "#### 42"),
        ("####   42 ", "42", "#### 42"),
        ("#### $42", "42", "#### 42"),
        ("#### -$1,042.50", "-1042.50", "#### -1042.50"),
        ("#### +7", "7", "#### 7"),
        ("#### \u22127", "-7", "#### -7"),
        ("#### 42. \nDone.", "42", "#### 42\nDone."),
    ],
)
def test_a_number_that_verls_reward_would_misread_is_normalised_in_truth_and_text(
    answer: str, truth: str, normalised: str
) -> None:
    row = gsm8k.row("q", answer, "train", 0)
    assert row["reward_model"]["ground_truth"] == truth
    assert row["messages"][1]["content"] == row["extra_info"]["answer"] == normalised


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("four", "no '#### NUMBER'"),
        ("42", "no '#### NUMBER'"),
        ("####", "no '#### NUMBER'"),
        ("#### \n42", "no '#### NUMBER'"),
        *(
            (f"#### {text}", "not one number")
            for text in (
                "3/4",
                "3 1/2",
                "1,23",
                "1,23,456",
                "1.234.567",
                "10:30",
                "5 or 6",
                "1e5",
                "x",
                ".",
                "-",
                "x=3",
            )
        ),
        ("#### 1\n" + "x" * 300, "not in the answer's last 300 characters"),
    ],
)
def test_an_answer_whose_number_verls_reward_cannot_compare_is_refused(answer: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        gsm8k.row("q", answer, "test", 0)


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        (None, "answer is null"),
        (b"", "answer is empty"),
        (b" \n", "answer is empty"),
        (42, r"answer is not text but 42 \(int\)"),
        (float("nan"), "answer is not text but nan"),
        (b"caf\xe9", "answer is not UTF-8: byte 0xe9 at 3"),
    ],
)
def test_a_cell_without_text_is_refused(cell: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        gsm8k.text_of(cell, "answer")


def test_a_cell_with_text_is_decoded() -> None:
    assert gsm8k.text_of("グ\n#### 1".encode(), "answer") == "グ\n#### 1"
