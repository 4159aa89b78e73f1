"""Make prepared data from sources: ``train.parquet`` and ``test.parquet``, in memory that does not grow with the data.

First pass: each row is read, converted and written to a spool on disk; of each row only two hashes and its place are
kept. They decide which rows are held out, dropped, repeated or refused. Second pass: the spools are written as parquet,
with the rows of several sources interleaved. Nothing is random: the same sources give the same files.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from llm_bridge.remote.node.common.job_io import JobError, log_line
from llm_bridge.remote.node.data import files, reading
from llm_bridge.remote.node.data.shapes import Row, Shape, shape
from llm_bridge.remote.node.hub import download

SPLITS = ("train", "test")
# Rows, and characters of them, in one file of a spool and in one row group of the result.
CHUNK_ROWS = 10_000
CHUNK_CHARACTERS = 2**25
# Rows that cannot be used until the rest of a file is no longer read.
MAX_PROBLEMS = 1000

# Returns which of some rows are too long for the model.
TooLong = Callable[[Sequence[Row]], Sequence[bool]]


class Found(NamedTuple):
    """Files of one source.

    Attributes:
        splits: "train", and "test" if the source has such a split -> its files.
        revision: Commit on the Hub; None for files of the cluster.
    """

    splits: dict[str, list[Path]]
    revision: Optional[str]


class Part:
    """Rows of one split of one source: on disk, with their hashes and places in memory.

    Args:
        folder: Directory for the spool's files.
        split: ``train`` or ``test``.
    """

    def __init__(self, folder: Path, split: str) -> None:
        folder.mkdir()
        self.folder, self.split = folder, split
        self.row_hashes, self.prompt_hashes = array("Q"), array("Q")
        self.places, self.too_long = array("I"), array("b")
        self.first_rows: list[tuple[int, Path]] = []
        self._starts = [0]
        self._loaded: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return len(self.row_hashes)

    def begin_file(self, path: Path) -> None:
        """Note that the rows that follow are of this file."""
        self.first_rows.append((len(self), path))

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows to the spool, as its next file."""
        import pyarrow.feather

        chunk = self.folder / str(len(self._starts) - 1)
        pyarrow.feather.write_feather(table_of(rows), str(chunk), compression="lz4")
        self._starts.append(self._starts[-1] + len(rows))

    def schemas(self) -> Iterator[Any]:
        """Yield the schema of each file of the spool."""
        import pyarrow

        for number in range(len(self._starts) - 1):
            with pyarrow.OSFile(str(self.folder / str(number))) as file:
                yield pyarrow.ipc.open_file(file).schema

    def take(self, rows: Any) -> Any:
        """Return rows as a table; fast where their numbers rise.

        Args:
            rows: Their numbers, as an array.
        """
        import numpy
        import pyarrow

        tables = []
        chunks = numpy.searchsorted(self._starts, rows, side="right") - 1
        borders = [0, *(numpy.flatnonzero(numpy.diff(chunks)) + 1), len(rows)]
        for begin, end in itertools.pairwise(borders):
            number = int(chunks[begin])
            if self._loaded[0] != number:
                table = pyarrow.feather.read_table(str(self.folder / str(number)), memory_map=False)
                self._loaded = (number, table)
            tables.append(self._loaded[1].take(pyarrow.array(rows[begin:end] - self._starts[number])))
        return pyarrow.concat_tables(tables, promote_options="permissive")

    def place(self, row: int) -> str:
        """Return a row's file with its line, or with its number in a parquet file."""
        path = next(path for first, path in reversed(self.first_rows) if first <= row)
        return f"{path}, {'row' if path.suffix == '.parquet' else 'line'} {self.places[row]}"


def table_of(rows: Sequence[Row]) -> Any:
    """Return rows as a pyarrow table with the columns of all of them.

    Raises:
        ValueError: A row does not fit the others; the message names the column.
    """
    import pyarrow

    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pyarrow.array([row.get(name) for row in rows])
        except (pyarrow.ArrowException, UnicodeError, OverflowError) as error:
            raise ValueError(
                f"column {name} has values of different types, or a text that is not UTF-8: {error}"
            ) from None
    return pyarrow.table(columns)


def find(source: dict[str, Any], directory: Path, by_hand: Path) -> Found:
    """Return the files of a source; those on the Hub are downloaded.

    Args:
        source: One of the specification's ``sources``.
        directory: Directory for a download.
        by_hand: Directory that llm-bridge makes for the data; error messages contain it.

    Raises:
        JobError: There are no such files.
    """
    where = source["source"]
    if files.is_pattern(where):
        return Found({"train": files.matching(where)}, None)
    chosen: dict[str, list[str]] = {}

    def choose(names: Sequence[str], readme: str) -> list[str]:
        for split, wanted in (("train", source["split"]), ("test", source["test_split"] or "test")):
            try:
                chosen[split] = files.choose(names, readme, source["config"], wanted)
            except ValueError as error:
                raise JobError(f"data.source: {where} {error}", kind="bad_config") from None
            if not chosen[split] and (split == "train" or source["test_split"]):
                raise files.no_split(where, wanted, names)
        if source["split"] == "test" and not source["test_split"]:
            chosen["test"] = []
        return [name for names in chosen.values() for name in names]

    revision, root = None, Path(where)
    if where.startswith("/"):
        choose(*files.list_directory(root))
    else:
        root = directory
        revision = download.download_data(where, source["revision"], choose, directory, by_hand)
    return Found(
        {split: [root / name for name in names] for split, names in chosen.items() if names}, revision
    )


def read(paths: Sequence[Path], split: str, form: Shape, folder: Path, too_long: Optional[TooLong]) -> Part:
    """Read all rows of a split into a spool.

    Args:
        paths: Its files.
        split: ``train`` or ``test``.
        form: Shape of the rows.
        folder: Directory for the spool.
        too_long: Returns the rows that are too long; None if that does not matter.

    Raises:
        JobError: Rows cannot be used; the message names the file and each row.
    """
    part = Part(folder, split)
    pending: list[Row] = []
    size = 0

    def flush() -> None:
        nonlocal pending, size
        if pending:
            part.too_long.extend(too_long(pending) if too_long else bytes(len(pending)))
            try:
                part.add(pending)
            except ValueError as error:
                first = part.place(len(part) - len(pending))
                raise JobError(f"data.source: a row from {first} on: {error}", kind="bad_config") from None
        pending, size = [], 0

    for path in paths:
        part.begin_file(path)
        problems: list[str] = []
        for batch in reading.batches(path, form.columns):
            for number, line, row in batch:
                place = number if line is None else line
                try:
                    made = form.make(row)
                except ValueError as error:
                    problems.append(f"{'row' if line is None else 'line'} {place}: {error}")
                    continue
                prompt, text = texts_of(made)
                part.prompt_hashes.append(hash_of(prompt))
                part.row_hashes.append(hash_of(text))
                part.places.append(place)
                pending.append(made)
                size += len(text)
                if len(pending) >= CHUNK_ROWS or size >= CHUNK_CHARACTERS:
                    flush()
            if len(problems) >= MAX_PROBLEMS:
                break
        if problems:
            raise bad_rows(path, problems)
    flush()
    if not len(part):
        raise JobError(
            f"data.source: the split {split} has no rows: {', '.join(map(str, paths))}", kind="bad_config"
        )
    return part


def bad_rows(path: Path, problems: Sequence[str]) -> JobError:
    """Return the error for rows that cannot be used."""
    more = len(problems) - reading.NAMED_ROWS
    many = f"{MAX_PROBLEMS} or more" if len(problems) >= MAX_PROBLEMS else str(len(problems))
    counted = " (the first row is row 0)" if path.suffix == ".parquet" else ""
    return JobError(
        f"data.source: {many} row(s) of {path} cannot be used{counted}:\n  - "
        + "\n  - ".join(problems[: reading.NAMED_ROWS])
        + (f"\n  - ... {more} more" if more > 0 else "")
        + "\nCorrect or remove these rows; for rows of another shape set data.format (docs/data.md).",
        kind="bad_config",
    )


def texts_of(row: Row) -> tuple[str, str]:
    """Return the text that identifies a row's prompt, and the one that identifies the row."""
    messages = row.get("messages")
    prompt = row.get("prompt") or messages[:-1] if messages else row["prompt"]
    truth = (row.get("reward_model") or {}).get("ground_truth")
    # Most conversations are the prompt with its answer.
    rest = messages[len(prompt) :] if messages and messages[: len(prompt)] == prompt else messages
    first = json.dumps(prompt, ensure_ascii=False, default=str)
    return first, first + json.dumps([rest, truth], ensure_ascii=False, default=str)


def hash_of(text: str) -> int:
    """Return 64 bits of a text's hash."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def build(
    specification: dict[str, Any],
    directory: Path,
    scratch: Path,
    final: Path,
    too_long: Optional[TooLong] = None,
) -> dict[str, Any]:
    """Write ``train.parquet`` and ``test.parquet``.

    Args:
        specification: ``Data.specification`` of ``config/data.py``.
        directory: Directory for both.
        scratch: Directory for downloads and spools.
        final: The directory's name once it is complete; for error messages.
        too_long: Returns the rows that are too long, where the specification does not keep them.

    Returns:
        ``{"hash", "rows", "duplicates", "leaked", "too_long", "held_out", "revisions", "files"}``.

    Raises:
        JobError: Data are missing, cannot be used, or are refused as the recipe says.
    """
    parts: list[list[Part]] = []
    revisions: dict[str, Optional[str]] = {}
    origins: dict[str, list[int]] = {}
    for number, source in enumerate(specification["sources"]):
        found = find(source, scratch / f"download{number}", final)
        form = shape(specification, source["source"])
        if found.revision:
            revisions[source["source"]] = found.revision
        parts.append([])
        for split, paths in found.splits.items():
            part = read(paths, split, form, scratch / f"spool{number}-{split}", too_long)
            log_line(f"data: {len(part)} rows of {split} from {source['source']}")
            parts[-1].append(part)
            if not found.revision:
                origins |= {str(path): file_state(path) for path in paths}
    selected, counts = select(parts, specification)
    digest = hashlib.sha256()
    counts["rows"] = {}
    for split in SPLITS:
        chosen = [(part, rows) for part, name, rows in selected if name == split and len(rows)]
        if not chosen:
            raise JobError(
                f"data: no row is left for {split}: {counts}. Change data.too_long, data.duplicates or "
                "data.leaked, or use more data.",
                kind="bad_config",
            )
        counts["rows"][split] = write(chosen, split, directory / f"{split}.parquet", digest)
    return {"hash": digest.hexdigest(), **counts, "revisions": revisions, "files": origins}


def file_state(path: Path) -> list[int]:
    """Return size and modification time of a file."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def select(
    parts: Sequence[Sequence[Part]], specification: dict[str, Any]
) -> tuple[list[tuple[Part, str, Any]], dict[str, Any]]:
    """Decide about each row: training, held out, or dropped.

    Args:
        parts: The parts of each source.
        specification: ``Data.specification``.

    Returns:
        Each part with a split and the numbers of its rows for it, in order; what was counted.

    Raises:
        JobError: The recipe refuses rows that there are.
    """
    import numpy

    flat = [part for source in parts for part in source]
    split_of: list[Any] = []
    held_out = 0
    for source in parts:
        whole = len(source) == 1
        for part in source:
            is_test = numpy.zeros(len(part), bool) if part.split == "train" else numpy.ones(len(part), bool)
            if whole:
                prompts = numpy.frombuffer(part.prompt_hashes, numpy.uint64)
                # The smallest one makes a held-out part of few rows, too.
                is_test = prompts <= max(int(specification["test_fraction"] * 2**64), int(prompts.min()))
                held_out += int(is_test.sum())
                if is_test.all():
                    raise JobError(
                        f"data.source: {part.first_rows[0][1]} has no test split, and none can be held out: all its "
                        f"{len(part)} rows have the same prompt, or test_fraction={specification['test_fraction']} is "
                        "too large. Name a test_split, or use more data.",
                        kind="bad_config",
                    )
            split_of.append(is_test)
    is_test = numpy.concatenate(split_of)
    number = numpy.concatenate([numpy.full(len(part), n, numpy.int32) for n, part in enumerate(flat)])
    row = numpy.concatenate([numpy.arange(len(part), dtype=numpy.int64) for part in flat])
    keep = numpy.ones(len(row), bool)
    row_hash = numpy.concatenate([numpy.frombuffer(part.row_hashes, numpy.uint64) for part in flat])
    prompt_hash = numpy.concatenate([numpy.frombuffer(part.prompt_hashes, numpy.uint64) for part in flat])
    too_long = numpy.concatenate([numpy.frombuffer(part.too_long, numpy.int8) for part in flat]).astype(bool)

    def duplicates() -> Any:
        again = numpy.zeros(len(keep), bool)
        for group in (is_test, ~is_test):
            rows = numpy.flatnonzero(group & keep)
            again[rows] = True
            again[rows[numpy.unique(row_hash[rows], return_index=True)[1]]] = False
        return again

    def leaked() -> Any:
        found = numpy.zeros(len(keep), bool)
        rows = numpy.flatnonzero(~is_test & keep)
        found[rows] = numpy.isin(prompt_hash[rows], prompt_hash[is_test & keep])
        return found

    counts: dict[str, Any] = {"held_out": held_out}
    checks: list[tuple[str, Callable[[], Any], str]] = [
        ("too_long", lambda: too_long, "have more tokens than training takes"),
        ("duplicates", duplicates, "are exact duplicates of an earlier row"),
        ("leaked", leaked, "are of the training split, and their prompt is in the test split as well"),
    ]
    for key, find_rows, problem in checks:
        rows = find_rows()
        counts[key] = int(rows.sum())
        if not counts[key]:
            continue
        if specification[key] == "refuse":
            named = numpy.flatnonzero(rows)[: reading.NAMED_ROWS]
            places = "\n  - ".join(flat[number[n]].place(int(row[n])) for n in named)
            raise JobError(
                f"data: {counts[key]} row(s) {problem}, and data.{key} is refuse:\n  - {places}\nRemove them, or set "
                f"data.{key} to drop or keep.",
                kind="bad_config",
            )
        if specification[key] == "drop":
            keep &= ~rows
    selected = []
    sources = [source for source, group in zip(specification["sources"], parts, strict=True) for _ in group]
    for n, part in enumerate(flat):
        for split in SPLITS:
            rows = row[(number == n) & keep & (is_test == (split == "test"))]
            selected.append((part, split, repeated(rows, sources[n]) if split == "train" else rows))
    return selected, counts


def repeated(rows: Any, source: dict[str, Any]) -> Any:
    """Return rows as often as their source's weight or ``max_rows`` says; a part of them is evenly spaced."""
    import numpy

    wanted = round(len(rows) * (source["weight"] or 1))
    if source["max_rows"]:
        wanted = min(len(rows), source["max_rows"])
    if not len(rows) or wanted == len(rows):
        return rows
    times, rest = divmod(max(wanted, 1), len(rows))
    spaced = numpy.arange(rest, dtype=numpy.int64) * len(rows) // max(rest, 1)
    return numpy.concatenate([rows] * times + [rows[spaced]])


def write(chosen: Sequence[tuple[Part, Any]], split: str, target: Path, digest: Any) -> int:
    """Write one split, with the rows of its parts in the same proportion all through the file.

    Args:
        chosen: Parts with the numbers of their rows.
        split: ``train`` or ``test``.
        target: The parquet file to write.
        digest: Receives the rows' hashes in order.

    Returns:
        The number of rows.
    """
    import numpy
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.unify_schemas(
            [schema for part, _ in chosen for schema in part.schemas()], promote_options="permissive"
        )
    except pyarrow.ArrowException as error:
        raise JobError(
            f"data: the rows of {split} do not fit together: {error}. The same column must have the same type in all "
            "files.",
            kind="bad_config",
        ) from None
    schema = place_in(schema.empty_table(), split, 0).schema
    total = sum(len(rows) for _, rows in chosen)
    slices = -(-total // CHUNK_ROWS)
    done = 0
    digest.update(split.encode())
    with pyarrow.parquet.ParquetWriter(target, schema) as writer:
        for n in range(slices):
            tables, orders = [], []
            for part, rows in chosen:
                some = rows[len(rows) * n // slices : len(rows) * (n + 1) // slices]
                if len(some):
                    tables.append(part.take(some))
                    orders.append((numpy.arange(len(some)) + 0.5) / len(some))
                    tables[-1] = tables[-1].append_column(
                        "", pyarrow.array(numpy.frombuffer(part.row_hashes, numpy.uint64)[some])
                    )
            table = pyarrow.concat_tables(tables, promote_options="permissive")
            if len(tables) > 1:
                table = table.take(numpy.lexsort((numpy.concatenate(orders),)))
            digest.update(table[""].combine_chunks().to_numpy().tobytes())
            table = place_in(table.drop_columns([""]), split, done)
            done += len(table)
            whole = pyarrow.concat_tables([schema.empty_table(), table], promote_options="permissive")
            writer.write_table(whole.select(schema.names).cast(schema))
    return done


def place_in(table: Any, split: str, first: int) -> Any:
    """Return rows for RL with ``split`` and ``index`` in ``extra_info``, where they have none.

    Args:
        table: The rows.
        split: Name of their split.
        first: Number of the first of them in it.
    """
    import pyarrow

    if "prompt" not in table.column_names:
        return table
    names, arrays = (
        ["split", "index"],
        [
            pyarrow.array([split] * len(table), pyarrow.string()),
            pyarrow.array(range(first, first + len(table)), pyarrow.int64()),
        ],
    )
    at = table.schema.get_field_index("extra_info")
    old = table["extra_info"].combine_chunks() if at >= 0 else None
    if old is not None and pyarrow.types.is_struct(old.type):
        if {"split", "index"} & {field.name for field in old.type}:
            return table  # verl's own shape, with an index of its own
        names += [field.name for field in old.type]
        arrays += old.flatten()
    made = pyarrow.StructArray.from_arrays(arrays, names)
    return table.append_column("extra_info", made) if at < 0 else table.set_column(at, "extra_info", made)
