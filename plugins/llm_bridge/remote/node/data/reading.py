"""Read rows of data files in batches, with errors that name file, row and line.

Parquet is read with pyarrow by row group; JSON lines and CSV by line. ``datasets.load_dataset`` is not used for that:
its JSON and CSV readers guess types (a list in a line becomes a text, ``007`` becomes 7) and know no line numbers.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.data.files import kind_of

BATCH_ROWS = 1000
MAX_JSON_BYTES = 2**28
# Names of columns whose rows a text model cannot learn from.
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
# Rows of one file that an error names.
NAMED_ROWS = 5

Row = dict[str, Any]
# Number of a row in its file from 0, its line from 1 (None in parquet files), and the row.
Numbered = tuple[int, Optional[int], Row]


def bad_file(path: Path, problem: str) -> JobError:
    """Return the error for a data file that cannot be used."""
    return JobError(f"data.source: {path}{problem}", kind="bad_config")


def batches(path: Path, columns: Optional[Sequence[str]] = None) -> Iterator[list[Numbered]]:
    """Yield the rows of a data file in batches.

    Args:
        path: The file.
        columns: Columns to read; None reads all. Refused where the file has not all of them.

    Raises:
        JobError: The file cannot be read, or a part of it is not of its kind.
    """
    kind = kind_of(path.name)
    try:
        if kind == "parquet":
            yield from _parquet(path, columns)
            return
        reader = {"jsonl": _json_lines, "json": _json, "csv": _csv}[str(kind)](path)
        batch: list[Numbered] = []
        for number, (line, row) in enumerate(reader):
            if number == 0:
                check_columns(path, list(row), columns)
            batch.append((number, line, row))
            if len(batch) == BATCH_ROWS:
                yield batch
                batch = []
        if batch:
            yield batch
    except OSError as error:
        raise JobError(f"data.source: cannot read {path}: {error}", kind="missing_path") from error


def check_columns(path: Path, existing: Sequence[str], wanted: Optional[Sequence[str]]) -> None:
    """Refuse a file without a column that the recipe names, or with images in a text recipe.

    Raises:
        JobError: Names the columns that there are.
    """
    if lacking := [name for name in wanted or () if name not in existing]:
        hint = ". The first line of a CSV file must name its columns" if path.suffix == ".csv" else ""
        raise bad_file(path, f" has no column {' and no '.join(lacking)}; it has {', '.join(existing)}{hint}")
    if media := [name for name in existing if name.lower() in MEDIA]:
        raise bad_file(
            path,
            f" has the column {media[0]}, and this recipe trains on text only: remove the column from the data, or use "
            "data without images",
        )


def _parquet(path: Path, columns: Optional[Sequence[str]]) -> Iterator[list[Numbered]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            check_columns(path, names, columns)
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns and list(columns)):
                rows = _rows(batch)
                yield [(number + offset, None, row) for offset, row in enumerate(rows)]
                number += len(rows)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise bad_file(path, f" is not a readable parquet file: {error}") from error


def _rows(batch: Any) -> list[Row]:
    try:
        rows: list[Row] = batch.to_pylist()
        return rows
    except UnicodeDecodeError:  # a text column may hold any bytes; shapes.py names the row
        return [
            {name: _cell(batch.column(name)[n]) for name in batch.schema.names} for n in range(batch.num_rows)
        ]


def _cell(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes() if hasattr(scalar, "as_buffer") else b"\xff"


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for line, data in enumerate(file, 1):
            if line == 1:
                data = data[len(codecs.BOM_UTF8) :] if data.startswith(codecs.BOM_UTF8) else data
            try:
                yield line, data.decode("utf-8")
            except UnicodeDecodeError as error:
                encoding = (
                    "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "latin1"
                )
                raise bad_file(
                    path,
                    f", line {line}: is not UTF-8: byte {data[error.start]:#04x} at {error.start}. Convert the file, "
                    f"such as with iconv -f {encoding} -t utf-8",
                ) from None


def _json_lines(path: Path) -> Iterator[tuple[Optional[int], Row]]:
    for line, text in _text_lines(path):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            jq = "'.[]'" if text.startswith("[") else "."
            raise bad_file(
                path,
                f", line {line}: is not JSON: {error.msg} at character {error.pos}. Each line must be one object, as "
                f"jq -c {jq} writes them",
            ) from None
        except (
            ValueError,
            RecursionError,
        ) as error:  # a number of thousands of digits, thousands of brackets
            raise bad_file(path, f", line {line}: cannot be read: {error}") from None
        if not isinstance(row, dict):
            raise bad_file(path, f", line {line}: is no JSON object but {text.strip():.60}")
        yield line, row


def _json(path: Path) -> Iterator[tuple[Optional[int], Row]]:
    """Yield the rows of a list of objects; or of JSON lines, which many name .json as well."""
    for _, text in _text_lines(path):
        if text.strip():
            if text.lstrip().startswith("{"):
                yield from _json_lines(path)
                return
            break
    if path.stat().st_size > MAX_JSON_BYTES:
        raise bad_file(
            path,
            f" is a JSON list of more than {MAX_JSON_BYTES >> 20} MiB, which must be read at once: convert it to JSON "
            "lines, such as with jq -c '.[]'",
        )
    try:
        rows = json.loads("".join(text for _, text in _text_lines(path)))
    except json.JSONDecodeError as error:
        raise bad_file(path, f", line {error.lineno}: is not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise bad_file(path, f": cannot be read: {error}") from None
    if not isinstance(rows, list):
        raise bad_file(path, " is no JSON list of objects")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise bad_file(path, f", row {number}: is no JSON object but {json.dumps(row):.60}")
        yield None, row


def _csv(path: Path) -> Iterator[tuple[Optional[int], Row]]:
    csv.field_size_limit(2**31 - 1)
    # newline="" in effect: _text_lines keeps line ends, which may stand in a quoted cell.
    reader = csv.reader((text for _, text in _text_lines(path)), strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            if not header:
                header = cells
                if len(cells) == 1 and any(separator in cells[0] for separator in ";\t"):
                    raise bad_file(path, f", line 1: {cells[0]!r:.80} is one cell: separate cells by commas")
                if len(set(header)) < len(header) or not all(name.strip() for name in header):
                    raise bad_file(
                        path,
                        f", line 1: is no header: {', '.join(header):.80}. The first line must name each column",
                    )
            elif cells:
                if len(cells) != len(header):
                    raise bad_file(
                        path,
                        f", line {reader.line_num}: has {len(cells)} cells, and the header has {len(header)}. A cell "
                        "with commas or line ends must stand in double quotes",
                    )
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise bad_file(path, f", line {reader.line_num}: is not CSV: {error}") from None
