"""From the bytes of one file to rows: JSONL, JSON, CSV, plain text, parquet, Arrow.

Owns the syntax of the formats and the line in every complaint. Knows nothing of prompts and
rankings.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crestline.types import BadInput

LONGEST_CSV_FIELD = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data set and where it stands, such as "pairs.jsonl:17" or "hub/name row 17"."""

    values: dict[str, Any]
    where: str


def read_file(path: Path) -> list[Row]:
    """Rows of one file; the kind is told by the ending, `.gz` allowed behind the text kinds.

    Raises: BadInput for an unknown ending, an unreadable file or broken contents.
    """
    kind = kind_of(path)
    if kind is None:
        raise BadInput(f"cannot read {path}: unknown ending; give one of {', '.join(KINDS)}")
    if not path.is_file():
        raise BadInput(f"cannot read {path}: not a regular file; give a file of {kind} rows")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {reason(error)}") from error
    if kind in _TABLES:
        return list(_table_rows(data, str(path), kind))
    if path.suffix.lower() == ".gz":
        data = _unpack(data, path)
    return list(_PARSERS[kind](_decode(data, str(path)), str(path)))


def kind_of(path: Path) -> str | None:
    """The supported ending of a file without `.gz`, or None.

    >>> kind_of(Path("pairs.jsonl.gz")), kind_of(Path("model.bin"))
    ('.jsonl', None)
    """
    name = path.name.lower()
    packed = name.endswith(".gz")
    ending = Path(name.removesuffix(".gz")).suffix
    return ending if ending in KINDS and not (packed and ending in _TABLES) else None


def reason(error: OSError) -> str:
    """What the operating system said, in words with something to do."""
    if isinstance(error, PermissionError):
        return "no permission; make the file readable for this user or name another"
    if isinstance(error, FileNotFoundError):
        return "no such file or folder; check the path"
    return f"{(error.strerror or str(error)).lower()}; check the path and the disk"


def _unpack(data: bytes, path: Path) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(
            f"{path}: not a complete gzip file ({one_line(error)}); copy or download it again"
        ) from error


def _decode(data: bytes, name: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadInput(f"{name}:1: not UTF-8 (it looks like UTF-16); save the file as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise BadInput(
            f"{name}:{line}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8"
        ) from error


def one_line(error: BaseException) -> str:
    """The first 200 characters of an exception's text, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _json_lines(text: str, name: str) -> Iterator[Row]:
    # Not splitlines(): U+2028 and friends may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(
                f"{where}: broken JSON at column {error.pos + 1} ({error.msg}); "
                "every line must be one JSON object"
            ) from error
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{where}: unusable JSON ({one_line(error)}); mend the line") from error
        yield Row(_object(value, where), where)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(
            f"{where}: found {describe(value)}, expected a JSON object such as "
            '{"prompt": "...", "completion": "..."}'
        )
    return value


def _json_rows(text: str, name: str) -> Iterator[Row]:
    """A JSON list of objects; JSON lines under the ending .json are taken as well."""
    start = _skip_space(text, 0)
    if text[start : start + 1] == "[":
        yield from _json_list(text, start + 1, name)
    elif text[start : start + 1] == "{" and _is_object(text[start:].split("\n", 1)[0]):
        yield from _json_lines(text, name)
    elif start < len(text):
        line = text.count("\n", 0, start) + 1
        raise BadInput(f"{name}:{line}: expected a JSON list of objects: [{{...}}, ...]")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _json_list(text: str, at: int, name: str) -> Iterator[Row]:
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    at = _skip_space(text, at)
    first = True
    while True:
        line, counted = line + text.count("\n", counted, at), at
        where = f"{name}:{line}"
        if text[at : at + 1] == "]" and first:
            break
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise BadInput(
                f"{name}:{error.lineno}: broken JSON at column {error.colno} ({error.msg}); "
                "expected a list of objects"
            ) from error
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{where}: unusable JSON ({one_line(error)}); mend the item") from error
        yield Row(_object(value, where), where)
        first = False
        at = _skip_space(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise BadInput(
                f"{name}:{text.count(chr(10), 0, at) + 1}: broken JSON: "
                "expected ',' or ']' after an item of the list"
            )
        at = _skip_space(text, at + 1)
    rest = _skip_space(text, at + 1)
    if rest < len(text):
        raise BadInput(
            f"{name}:{text.count(chr(10), 0, rest) + 1}: text after the end of the list; remove it"
        )


def _csv_rows(text: str, name: str) -> Iterator[Row]:
    before = csv.field_size_limit(LONGEST_CSV_FIELD)  # 131,072 by default: shorter than many texts
    try:
        rows = list(_csv_rows_unlimited(text, name))
    finally:
        csv.field_size_limit(before)
    yield from rows


def _csv_rows_unlimited(text: str, name: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    first_line = 1
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise BadInput(
                f"{name}:{first_line}: broken CSV ({one_line(error)}); check the quotes of this row"
            ) from error
        if fields is None:
            return
        where, first_line = f"{name}:{first_line}", reader.line_num + 1
        if not fields:
            continue
        if header is None:
            header = _csv_header(fields, where)
        elif len(fields) != len(header):
            raise BadInput(
                f"{where}: {len(fields)} columns where the header has {len(header)} "
                f"({', '.join(header)}); put quotes around texts with commas"
            )
        else:
            yield Row(dict(zip(header, map(csv_cell, fields), strict=True)), where)


class BrokenChat(str):
    """A cell that looks like chat messages and is no JSON, such as Python's own way of writing them."""

    __slots__ = ()


_LIST = re.compile(r"\s*\[\s*\{")
_CHAT = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:.*\}\s*\]\s*""", re.DOTALL)


def csv_cell(text: str) -> Any:
    """What a cell says: a text, or where it is JSON of chat messages, these; a BrokenChat where it only looks so."""
    if not _LIST.match(text):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return BrokenChat(text) if _CHAT.fullmatch(text) else text
    is_chat = all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in value)
    return value if is_chat else text


def _csv_header(fields: list[str], where: str) -> list[str]:
    for field in fields:
        if fields.count(field) > 1:
            raise BadInput(f"{where}: column {field!r} stands twice in the header; rename one")
    return fields


def _text_rows(text: str, name: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        content = line.removesuffix("\r")
        if content.strip():
            yield Row({"text": content}, f"{name}:{number}")


def _table_rows(data: bytes, name: str, kind: str) -> Iterator[Row]:
    import pyarrow  # 0.2 s: too long for those who read no tables
    import pyarrow.parquet

    try:
        buffer = pyarrow.BufferReader(data)
        if kind == ".parquet":
            rows = pyarrow.parquet.ParquetFile(buffer).read().to_pylist()
        else:
            is_file = data.startswith(b"ARROW1")
            opened = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
            rows = opened(buffer).read_all().to_pylist()
    except Exception as error:  # broken bytes make pyarrow raise nearly anything
        raise BadInput(
            f"{name}: not a readable {_TABLES[kind]} file ({one_line(error)}); "
            "copy or write it again"
        ) from error
    for number, values in enumerate(rows, 1):
        yield Row(values, f"{name} row {number}")


def describe(value: Any) -> str:
    """A value in a few words for a complaint: its kind and how it begins.

    >>> describe(None), describe(float("nan")), describe("a text"), describe([1, 2])
    ('null', 'NaN', "text 'a text'", 'a list of 2')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value != value:
        return "NaN"
    if isinstance(value, str):
        short = value if len(value) <= 40 else value[:37] + "..."
        return f"text {short!r}"
    if isinstance(value, int | float):
        text = f"{value:.6g}" if isinstance(value, float) else _decimal(value)
        return f"number {text}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        keys = ", ".join(map(str, list(value)[:6]))
        return f"an object with {keys}" if value else "an empty object"
    return f"a {type(value).__name__}"


def _decimal(value: int) -> str:
    """An integer in decimal, shortened where it is absurdly long."""
    return str(value) if abs(value) < 10**18 else "beyond 10^18"


_PARSERS: dict[str, Callable[[str, str], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".txt": _text_rows,
}
_TABLES = {".parquet": "parquet", ".arrow": "Arrow"}
KINDS = (*_PARSERS, *_TABLES)
