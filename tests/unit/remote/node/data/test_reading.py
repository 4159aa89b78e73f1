"""Rows of text files with their lines; tests/verl reads parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.data import reading


def rows(path: Path, content: bytes, *columns: str) -> list[tuple[Any, Any]]:
    path.write_bytes(content)
    return [(line, row) for batch in reading.batches(path, columns or None) for _, line, row in batch]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.jsonl", b'\xef\xbb\xbf{"q": ["x"]}\n\n{"q": "007"}\n', [(1, {"q": ["x"]}), (3, {"q": "007"})]),
        ("a.json", b'[{"q": 1},\n {"q": 2}]', [(None, {"q": 1}), (None, {"q": 2})]),
        ("a.json", b'{"q": 1}\n{"q": 2}\n', [(1, {"q": 1}), (2, {"q": 2})]),
        ("a.csv", b'q,a\n"x,\ny",007\nz,\n', [(3, {"q": "x,\ny", "a": "007"}), (4, {"q": "z", "a": ""})]),
    ],
)
def test_rows_are_read_with_their_lines(name: str, content: bytes, found: list[Any], tmp_path: Path) -> None:
    assert rows(tmp_path / name, content) == found


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"q": "x"}\n{"q": "caf\xe9"}\n', "line 2: is not UTF-8: byte 0xe9"),
        (
            "a.jsonl",
            '{"q": "x"}\n'.encode("utf-16"),
            "line 1: is not UTF-8: byte 0xff at 0. Convert the file, such as with iconv -f utf-16",
        ),
        ("a.jsonl", b'{"q": "x"}\n{"q": \n', "line 2: is not JSON"),
        ("a.jsonl", b'{"q": ' + b"9" * 5000 + b"}\n", "line 1: cannot be read: Exceeds the limit"),
        (
            "a.jsonl",
            b'{"q": "x"}\n' + b"[" * 100_000 + b"\n",
            "line 2: cannot be read: maximum recursion depth",
        ),
        ("a.json", b"[" * 100_000, ": cannot be read: maximum recursion depth"),
        ("a.jsonl", b'{"q": "x"}\n["x"]\n', 'line 2: is no JSON object but ["x"]'),
        ("a.jsonl", b'{"a": "x"}\n', "has no column q; it has a"),
        (
            "a.jsonl",
            b'{"q": "x", "image": "x.png"}\n',
            "has the column image, and this recipe trains on text only",
        ),
        ("a.jsonl", b'{\n "q": "x"\n}\n', "Each line must be one object, as jq -c . writes them"),
        ("a.jsonl", b'[{"q": "x"},\n {}]', "Each line must be one object, as jq -c '.[]' writes them"),
        ("a.csv", b"q;a\n1;2\n", "line 1: 'q;a' is one cell: separate cells by commas"),
        ("a.csv", b"q\ta\n1\t2\n", "line 1: 'q\\ta' is one cell: separate cells by commas"),
        ("a.json", b'[{"q": "x"}\n {}]', "line 2: is not JSON"),
        ("a.json", b'"x"', "is no JSON list of objects"),
        ("a.json", b"[1]", "row 0: is no JSON object but 1"),
        (
            "a.csv",
            b"a,b\n1,2\n",
            "has no column q; it has a, b. The first line of a CSV file must name its columns",
        ),
        ("a.csv", b"q,q\n1,2\n", "line 1: is no header"),
        ("a.csv", b"q,a\n1,2,3\n", "line 2: has 3 cells, and the header has 2"),
        ("a.csv", b'q,a\n1,"2"3\n', "line 2: is not CSV"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_line(
    name: str, content: bytes, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(JobError) as raised:
        rows(tmp_path / name, content, "q")
    assert str(raised.value).startswith(f"data.source: {tmp_path / name}")
    assert problem in str(raised.value)


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"cannot read .*No such file"):
        list(reading.batches(tmp_path / "a.jsonl"))
