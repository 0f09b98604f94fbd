"""A file that a verb adds rows to until it is done: whose it is, and the settings that it was begun with.

Rows made by others must not be taken for its own, and files of others must not be touched. Owns the second file, with
the settings. Knows of the rows only which columns they have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from crestline.runs.files import read_json, read_jsonl, reading, write_json
from crestline.types import BadInput

SAMPLE_COLUMNS = ("prompt", "completions")
RANKING_COLUMNS = ("completions", "answered_by")
"""Columns by which rows of `sample` and `rank` are known."""


def rows_there(output: str, source: str, columns: Collection[str]) -> list[dict[str, Any]]:
    """The rows that an --output_file holds; touches nothing.

    source: what is read to make the rows. columns: those that every row of the verb has.
    Raises: BadInput where the file's name doesn't end in .jsonl, or it is a folder, the source, or somebody else's.
    """
    path = Path(output)
    if path.suffix != ".jsonl":
        raise BadInput(
            f"--output_file {output}: JSON lines are written; give a name that ends in .jsonl"
        )
    if path.is_dir():
        raise BadInput(f"--output_file {output} is a folder; give a file")
    if path.resolve() == Path(source).resolve():
        raise BadInput(f"--output_file {output} is what is read; choose another --output_file")
    if not path.exists():
        return []
    with reading(path):
        torn = path.read_bytes().rpartition(b"\n")[2].strip()
    rows = read_jsonl(path)
    if (torn and not torn.startswith(b"{")) or any(not row.keys() >= {*columns} for row in rows):
        raise BadInput(
            f"{output} holds something else than rows with {' and '.join(columns)}; "
            "choose another --output_file"
        )
    return rows


def settings_path(path: Path) -> Path:
    """Where they are kept.

    >>> settings_path(Path("runs/samples.jsonl")).name
    'samples.settings.json'
    """
    return path.with_suffix(".settings.json")


def check_begun(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise BadInput where rows of the file were made with other settings. Those that nobody kept are not compared."""
    kept = settings_path(path)
    there = read_json(kept) if kept.exists() else {}
    if not isinstance(there, dict):
        raise BadInput(f"{kept} holds no settings; remove it, or choose another --output_file")
    for name, value in settings.items():
        if there.get(name, value) != value:
            raise BadInput(
                f"{path} was begun with {name} {there[name]!r}, not {value!r}; choose another --output_file"
            )


def begin(path: Path, settings: Mapping[str, Any]) -> None:
    """Keep the settings of a file that has no rows yet; call before its first row is written."""
    check_free(path, settings)
    write_json(settings_path(path), dict(settings))


def check_free(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise BadInput where a file stands in the settings' place that holds other things than such settings."""
    kept = settings_path(path)
    there = read_json(kept) if kept.exists() else dict(settings)
    if not isinstance(there, dict) or there.keys() != settings.keys():
        raise BadInput(
            f"{kept} was not written for {path} and would be overwritten; move it away, "
            "or choose another --output_file"
        )
