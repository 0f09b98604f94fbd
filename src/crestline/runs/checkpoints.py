"""Folders that are either whole or not there, and the checkpoints among them.

Owns the names `checkpoint-N` and the way a folder comes and goes. Knows nothing of what is inside.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from crestline.runs.files import TEMPORARY, reading, sync_folder, temporary_name, writing

_CHECKPOINT = re.compile(r"checkpoint-(0|[1-9]\d*)")


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, which gets its real name only when it is whole and on the disk.

    Folders above are made. A folder that already stands at `path` is replaced; a kill between its
    removal and the renaming leaves none. If the block fails, nothing is left behind.
    Raises: BadInput where the disk refuses.
    """
    path = Path(path)
    temporary = path.parent / f"{TEMPORARY}{path.name}"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete(temporary)
        try:
            temporary.mkdir()
            yield temporary
            _sync_tree(temporary)
            if path.exists():
                remove_folder(path)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                _delete(temporary)
            raise
        sync_folder(path.parent)


def _sync_tree(folder: Path) -> None:
    for name, _, files in os.walk(folder, topdown=False):
        for file in files:
            with open(Path(name, file), "rb") as opened:
                os.fsync(opened.fileno())
        sync_folder(Path(name))


def remove_folder(path: str | Path) -> None:
    """Removes a folder, if there is one; a kill never leaves half of it under its real name.

    Raises: BadInput where the disk refuses.
    """
    path = Path(path)
    doomed = path.parent / temporary_name(path.name)
    with writing(path):
        try:
            os.rename(path, doomed)
        except FileNotFoundError:
            return
        sync_folder(path.parent)
        _delete(doomed)


def clean_temporary(folder: str | Path, name: str = "") -> int:
    """Removes what killed writers left directly in a folder; only for who holds the folder's lock, or owns the name.

    name: only what was to be a file or folder whose name begins so.
    Returns: the number of unfinished files and folders removed.
    Raises: BadInput where the disk refuses.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return 0
    with writing(folder):
        leftovers = [entry for entry in folder.iterdir() if entry.name.startswith(TEMPORARY + name)]
        for entry in leftovers:
            _delete(entry)
    return len(leftovers)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def checkpoint_path(folder: str | Path, update: int) -> Path:
    """Where the state after `update` updates stands.

    >>> checkpoint_path("rl", 40).name
    'checkpoint-40'
    """
    return Path(folder) / f"checkpoint-{update}"


def list_checkpoints(folder: str | Path) -> list[int]:
    """Updates of the whole checkpoints in a folder, lowest first; a missing folder has none."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    with reading(folder):
        return sorted(
            int(name.group(1))
            for entry in folder.iterdir()
            if (name := _CHECKPOINT.fullmatch(entry.name))
            and entry.is_dir()
            and any(entry.iterdir())
        )


def latest_checkpoint(folder: str | Path) -> int | None:
    """The update of the last whole checkpoint in a folder, or None."""
    updates = list_checkpoints(folder)
    return updates[-1] if updates else None
