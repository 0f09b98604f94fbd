"""The settings that a file was begun with, kept beside it: rows made by others must not be taken for its own.

Owns that second file. Knows nothing of what the rows are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crestline.runs.files import read_json, write_json
from crestline.types import BadInput


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
    write_json(settings_path(path), dict(settings))
