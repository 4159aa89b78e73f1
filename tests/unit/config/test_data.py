"""Data of a recipe: short form and several sources, refused combinations, and the folder of the prepared rows."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llm_bridge.config.data import Data, Source, template_fields


def test_the_short_form_is_one_source() -> None:
    data = Data(source="/data/chat.jsonl", format="chat", max_rows=10)
    assert data.all_sources() == [Source(source="/data/chat.jsonl", max_rows=10)]


def test_without_keys_the_data_are_gsm8k() -> None:
    assert Data().all_sources() == [Source(source="openai/gsm8k", config="main")]


def test_a_data_set_like_gsm8k_keeps_the_folder_of_earlier_versions() -> None:
    assert Data().folder() == "openai--gsm8k--main"
    assert Data(source="demo/gsm8k-tiny").folder() == "demo--gsm8k-tiny--main"


def test_everything_that_decides_the_rows_decides_the_folder() -> None:
    def chat(**given: Any) -> Data:
        return Data(source="/data/chat.jsonl", format="chat", **given)

    given: list[dict[str, Any]] = [
        {},
        {"system": "Be brief."},
        {"duplicates": "drop"},
        {"test_fraction": 0.1},
        {"max_rows": 5},
    ]
    folders = [chat(**one).folder() for one in given] + [chat().folder({"base_model": "a/b"})]
    assert len(set(folders)) == len(folders)
    assert chat().folder() == chat().folder()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"source": "/data/../x.jsonl"}, "without '.' and '..'"),
        ({"source": "/data/chat-*"}, "must end in one of .parquet, .jsonl"),
        *(
            ({"source": f"/data/{name}", "format": "chat"}, "files must be one of .parquet, .jsonl, .ndjson")
            for name in ("x.txt", "x.tsv", "x.JSONL", "x.jsonl.gz", "part-*.txt")
        ),
        ({"source": "data/chat.jsonl"}, "is a relative path: write the absolute path on the cluster"),
        ({"source": "chat.jsonl"}, "OWNER/NAME on the Hub, or an absolute path"),
        (
            {"sources": [{"source": "a/b"}], "split": "x"},
            "sources and split both name data: move split into sources",
        ),
        ({"sources": [{"source": "a/b", "weight": 2, "max_rows": 3}]}, "weight and max_rows both"),
        ({"sources": [{"source": "/a/b.csv", "revision": "main"}]}, "revision is for data sets on the Hub"),
        (
            {"sources": [{"source": "/a/b.csv", "test_split": "test"}]},
            "test_split is for data sets on the Hub",
        ),
        ({"source": "/a/b.csv", "split": "dev"}, "split is for data sets on the Hub"),
        (
            {"sources": [{"source": "a/b"}, {"source": "c/d"}, {"source": "a/b"}]},
            "sources.2 is the same as sources.0: remove it, or set weight: 2",
        ),
        (
            {"sources": [{"source": "a/b", "split": "x", "test_split": "x"}]},
            "split and test_split are both 'x'",
        ),
        ({"sources": []}, "at least 1 item"),
        ({"format": "table"}, "'gsm8k', 'chat', 'columns' or 'verl'"),
        *(
            ({"format": name}, "write chat: it reads messages")
            for name in ("sharegpt", "ShareGPT", "messages")
        ),
        ({"sources": [{"source": "a/b", "weight": True}]}, "must be a number, not true or false"),
        ({"max_rows": True}, "must be a number, not true or false"),
        ({"format": "columns"}, "needs either columns.prompt"),
        ({"format": "columns", "columns": {"prompt": "a"}, "template": "{a}"}, "not both"),
        ({"format": "columns", "template": "no field"}, "has no field"),
        ({"format": "columns", "template": "{a} {"}, "for a brace in the text write"),
        ({"format": "columns", "template": "{a.b}"}, "must be the name of a column"),
        ({"format": "chat", "template": "{a}"}, "template is for format columns, not for chat"),
        ({"format": "gsm8k", "columns": {"prompt": "q"}}, "columns.prompt is not for format gsm8k"),
        ({"format": "verl", "system": "x"}, "system is for the formats columns and chat"),
        ({"duplicates": "remove"}, "'drop', 'keep' or 'refuse'"),
    ],
)
def test_data_that_cannot_be_read_are_refused_with_the_key(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Data(**given)
    assert problem in str(raised.value)


def test_a_template_names_its_columns() -> None:
    assert template_fields("{{json}} {question} and {final-answer}") == ["question", "final-answer"]


def test_a_pattern_is_found_below_its_first_fixed_directory() -> None:
    assert Source(source="/data/chat/2026-*/part-?.jsonl").directory_or_file == "/data/chat"
    assert Source(source="/data/chat.jsonl").directory_or_file == "/data/chat.jsonl"
