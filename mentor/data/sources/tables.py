"""Tables of captions: CSV, TSV and JSON lines as people really write them."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mentor.errors import UserError

TABLES = frozenset({".csv", ".tsv", ".jsonl"})
IMAGE_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "image_file", "img", "path", "file_path")
CAPTION_COLUMNS = ("text", "caption", "captions", "description", "prompt")
NOT_UTF8 = "caption is not UTF-8"
UNREADABLE = "unreadable row"
_LOOK_AT = 100


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        line: where it ends, from 1.
        values: by column; cells that are not UTF-8 keep their bytes as surrogates.
        problem: why it has no values.
    """

    line: int
    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Table:
    """A table in memory; `columns` in the order of the file."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def read_table(path: Path) -> Table:
    """The table in a CSV, TSV or JSON lines file.

    Raises:
        UserError: it cannot be read, is empty, or most of its rows cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path} is UTF-16: save it as UTF-8")
    if path.suffix.lower() == ".jsonl":
        rows = tuple(parse_lines(content))
        columns = tuple(dict.fromkeys(name for row in rows for name in row.values))
    else:
        columns, rows = _parse_cells(path, content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape"))
    bad = [row for row in rows if row.problem]
    if not rows:
        raise UserError(f"{path} has no rows")
    if 2 * len(bad) > len(rows):
        raise UserError(f"{path}: {len(bad)} of {len(rows)} rows cannot be read, line {bad[0].line}: {bad[0].problem}")
    return Table(path, columns, rows)


def parse_lines(content: bytes) -> Iterator[Row]:
    """The rows of JSON lines; empty lines are none."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            yield parse_line(number, line)


def parse_line(number: int, line: bytes) -> Row:
    """One row of JSON lines."""
    try:
        values = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return Row(number, problem="no JSON")
    if not isinstance(values, dict):
        return Row(number, problem="no JSON object")
    return Row(number, values)


def image_column(table: Table, asked: str | None) -> str:
    """The column with the pictures' paths.

    Raises:
        UserError: the column asked for is not there, or none or several could be meant.
    """
    if asked is not None:
        return _check_column(table, asked)
    known = [name for name in table.columns if name.strip().lower() in IMAGE_COLUMNS]
    if "file_name" in known or len(known) == 1:
        return "file_name" if "file_name" in known else known[0]
    what = "several columns could name the pictures" if known else "no column names the pictures"
    header = "" if known or table.path.suffix.lower() == ".jsonl" else " (is the first line a header?)"
    raise UserError(f"{table.path}: {what}{header}, there are {_shown(table)}: say which with image_column")


def caption_columns(table: Table, asked: str | Sequence[str] | None, image: str) -> tuple[str, ...]:
    """The columns with the captions.

    Raises:
        UserError: a column asked for is not there, or none or several could be meant.
    """
    if asked is not None:
        return tuple(_check_column(table, name) for name in ([asked] if isinstance(asked, str) else asked))
    others = [name for name in table.columns if name != image]
    found = [name for name in others if name.strip().lower() in CAPTION_COLUMNS]
    if not found:
        found = [name for name in others if _has_words(table, name)]
    if len(found) != 1:
        what = "several columns could be captions" if found else "no column has captions"
        raise UserError(f"{table.path}: {what}, there are {_shown(table)}: say which with caption_column")
    return (found[0],)


def captions_of(value: Any) -> tuple[str, ...] | None:
    """A cell's captions, stripped, without empty ones; None when it is neither text nor a list of texts."""
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    return tuple(text.strip() for text in texts if text.strip())


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse_cells(path: Path, text: str) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    header = text.partition("\n")[0]
    tabs = path.suffix.lower() == ".tsv"
    # Spreadsheets of many countries write semicolons.
    delimiter = "\t" if tabs or ("\t" in header and "," not in header) else ";" if _semicolons(header) else ","
    try:
        lines = list(_quoted(text, delimiter))
    except csv.Error as error:
        if not tabs:
            line, what = error.args
            raise UserError(f"{path}, line {line}: {what}: put cells with commas or quotes into quotes") from None
        # Tables with tabs are often written without any quoting, and then quotes are part of the text.
        lines = [(number, line.rstrip("\r").split("\t")) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(number, cells) for number, cells in lines if any(cell.strip() for cell in cells)]
    if not lines:
        raise UserError(f"{path} is empty")
    columns = tuple(cell.strip() for cell in lines[0][1])
    if len(set(columns)) < len(columns):
        raise UserError(f"{path}: two columns have the same name in the header {', '.join(columns)}")
    rows = []
    for number, cells in lines[1:]:
        if len(cells) == len(columns):
            rows.append(Row(number, dict(zip(columns, cells, strict=True))))
        else:
            rows.append(Row(number, problem=f"{len(cells)} cells under {len(columns)} columns"))
    return columns, tuple(rows)


def _quoted(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise csv.Error(reader.line_num, str(error)) from None


def _semicolons(header: str) -> bool:
    return ";" in header and "," not in header


def _check_column(table: Table, name: str) -> str:
    if name not in table.columns:
        raise UserError(f"{table.path} has no column {name!r}: there are {_shown(table)}")
    return name


def _has_words(table: Table, column: str) -> bool:
    for row in table.rows[:_LOOK_AT]:
        captions = captions_of(row.values.get(column))
        if captions and any(any(letter.isalpha() for letter in caption) for caption in captions):
            return True
    return False


def _shown(table: Table) -> str:
    return ", ".join(table.columns) or "none"
