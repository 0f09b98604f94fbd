"""Where rows come from: a file, a folder of files, or a data set of the Hugging Face hub.

Owns finding the files of a source and its split. What the bytes mean is in `parsers`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crestline.data.parsers import KINDS, Row, kind_of, one_line, read_file, reason
from crestline.types import BadInput

LARGEST_LOOKED_AT = 30_000_000
"""Bytes of a data set that is read to say something of it beforehand."""
SPLIT_NAMES = ("train", "test", "validation", "valid", "val", "dev", "eval")
_SHARD = re.compile(r"-\d{5}-of-\d{5}[-.]")
"""In names of files that say their split right before it: `train_sft-00000-of-00002.parquet` is not of `train`."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_large(path: Path) -> bool:
    """Whether a file, or all files of a folder, are too large to be read just for a look."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file()) > LARGEST_LOOKED_AT


def read_rows(source: str, *, split: str = "train") -> list[Row]:
    """All rows of a data set, each with the place it stands at.

    source: a .jsonl, .json (a list), .csv, .txt (one line, one row with the column `text`) or
        .parquet file, the text kinds also as .gz; a folder of such files, or one that
        `save_to_disk` of datasets wrote; else an "owner/name" of the Hugging Face hub.
    split: which split of a hub data set or folder to read; a single file is read whole.
    Raises: BadInput, one line: what is wrong, at which line, what to do.
    """
    if not source:
        raise BadInput("no data set given; name a file, a folder or a Hugging Face data set")
    path = Path(source)
    try:
        path.stat()
    except FileNotFoundError:
        rows = _hub_rows(source, split)
    except OSError as error:
        raise BadInput(f"cannot read {source}: {reason(error)}") from error
    except ValueError as error:
        raise BadInput(f"cannot read {source!r}: not a path ({one_line(error)})") from error
    else:
        files = _files_of(path, split) if path.is_dir() else [path]
        rows = [row for file in files for row in read_file(file)]
    if not rows:
        raise BadInput(f"{source}: no rows; give a data set with at least one")
    return rows


def _files_of(folder: Path, split: str) -> list[Path]:
    """The files named after the split, else all of them if none is named after another split."""
    if (folder / "dataset_dict.json").is_file():  # save_to_disk of several splits
        folder = _split_folder(folder, split)
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise BadInput(f"cannot read {folder}: {reason(error)}") from error
    files = [
        entry
        for entry in entries
        if not entry.name.startswith(".") and kind_of(entry) and entry.is_file()
    ]
    if not files:
        raise BadInput(f"{folder}: a folder without data files; expected {', '.join(KINDS)} in it")
    if (folder / "state.json").is_file():  # save_to_disk: other files describe these, or are caches
        return _saved_files(folder)
    chosen = [file for file in files if _stem(file) == split]
    chosen = chosen or [file for file in files if _split_of(file) == split]
    if chosen:
        return chosen
    others = [file.name for file in files if _split_of(file)]
    if others:
        raise BadInput(
            f"{folder}: no split {split!r}; found {', '.join(others[:6])}; "
            "name one of these files or another split"
        )
    return files


def _saved_files(folder: Path) -> list[Path]:
    """The files that hold a data set which `save_to_disk` wrote."""
    path = folder / "state.json"
    try:
        return [
            folder / entry["filename"]
            for entry in json.loads(path.read_text(encoding="utf-8"))["_data_files"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path}: does not say which files hold the data ({type(error).__name__}); save the data set again"
        ) from error


def _split_folder(folder: Path, split: str) -> Path:
    if not (folder / split).is_dir():
        found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        raise BadInput(
            f"{folder}: no split {split!r}; found {', '.join(found[:6]) or 'none'}; name another"
        )
    return folder / split


def _stem(file: Path) -> str:
    """The file's name without its ending, and without the number of its shard."""
    shard = _SHARD.search(file.name)
    return file.name[: shard.start()] if shard else file.name.partition(".")[0]


def _split_of(file: Path) -> str:
    """The split that a file's name says, the last one where it says several; empty if it says none.

    >>> [_split_of(Path(f"{name}.jsonl")) for name in ("pairs_train", "train-v1-test", "answers")]
    ['train', 'test', '']
    >>> [_split_of(Path(f"{name}-00000-of-00002.parquet")) for name in ("json-train", "train_sft")]
    ['train', 'train_sft']
    """
    stem = _stem(file)
    words = re.findall(r"[a-z]+", stem.lower())
    said = next((word for word in reversed(words) if word in SPLIT_NAMES), "")
    return stem if said and words[-1] != said and _SHARD.search(file.name) else said


def _hub_rows(name: str, split: str) -> list[Row]:
    if not _HUB_NAME.fullmatch(name) or kind_of(Path(name)):
        raise BadInput(
            f"cannot read {name}: no such file or folder; check the path, "
            "or give owner/name of a Hugging Face data set"
        )
    import datasets  # seconds to import: only those who need the hub pay

    try:
        dataset = datasets.load_dataset(name, split=split)
        rows = [
            Row(_plain(values), f"{name} row {number}") for number, values in enumerate(dataset, 1)
        ]
    except Exception as error:  # the hub, the network and foreign files raise nearly anything
        raise BadInput(
            f"cannot read {name}: no such file or folder here, and as a data set of the Hugging "
            f"Face hub (split {split!r}) it failed: {one_line(error)}; check name and network"
        ) from error
    return rows


def _plain(values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise TypeError(f"rows of {type(values).__name__}, expected one table with columns")
    return dict(values)
