"""Files that are either whole or not there: atomic writes, JSON, append-only JSONL.

Owns how bytes reach the disk and what is said when they cannot. Knows nothing of stages and
checkpoints.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from crestline.types import BadInput

TEMPORARY = ".tmp-"
"""How the names of unfinished files and folders begin."""

_TODO = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space and run again",
    errno.EACCES: "choose a place where this user may write",
    errno.EPERM: "choose a place where this user may write",
    errno.EROFS: "choose a place on a writable disk",
    errno.EEXIST: "a file stands where a folder is needed: choose another path",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another path",
    errno.EISDIR: "a folder stands where a file is needed: choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
}
# How libraries that do not raise OSError (safetensors, pyarrow) tell the system's error number.
_FOREIGN_ERRNO = re.compile(r"(?:os error |\[errno )(\d+)", re.IGNORECASE)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """A block that writes `path`: a failing disk becomes one line for the user.

    Errors of other libraries count too if their text names the system's error number, as in "os
    error 28".
    Raises: BadInput such as "cannot write runs/x/config.yaml: no space left on device; free some
    space and run again".
    """
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        number = _errno_of(error)
        if number is None:
            raise
        raise BadInput(f"cannot write {path}: {_told(number)}") from error


def _errno_of(error: Exception) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    told = _FOREIGN_ERRNO.search(str(error))
    if told:
        return int(told.group(1))
    return errno.EIO if isinstance(error, OSError) else None


def _told(number: int) -> str:
    return f"{os.strerror(number).lower()}; {_TODO.get(number, 'check the path and the disk')}"


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """A block that reads `path`: a missing or unreadable file becomes one line for the user.

    Raises: BadInput.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise BadInput(f"cannot read {path}: {reason}; check the path") from error


def check_place(flag: str, path: str | Path) -> None:
    """Raises BadInput where no folder above `path` can be made: a file stands in its place. Touches nothing."""
    above = next((folder for folder in Path(path).parents if folder.exists()), Path())
    if not above.is_dir():
        raise BadInput(f"--{flag} {path}: {above} is a file, not a folder; choose another --{flag}")


def temporary_name(name: str) -> str:
    """A name for an unfinished twin of `name`, never the same twice."""
    return f"{TEMPORARY}{name[:80]}-{secrets.token_hex(4)}"


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Writes a file such that every reader at any instant sees the old or the new one, whole.

    Folders above are made. content: text is written as UTF-8.
    Raises: BadInput where the disk refuses; nothing is left behind then.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.parent / temporary_name(path.name)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


def write_json(path: str | Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically; NaN and infinities become null.

    Raises: BadInput where the disk refuses; TypeError for values that are not JSON.
    """
    write_atomic(path, _json(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises: BadInput where it is missing or broken.
    """
    with reading(path):
        data = Path(path).read_bytes()
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: broken JSON ({error}); restore or remove the file") from error


def write_jsonl_atomic(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON lines, atomically; NaN and infinities become null.

    Raises: BadInput where the disk refuses; TypeError for values that are not JSON.
    """
    write_atomic(path, _lines(rows))


def append_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows to a JSON lines file and waits until the disk has them.

    Folders above are made; NaN and infinities become null. A torn last line, left by a kill in an
    earlier append, is removed first.
    Raises: BadInput where the disk refuses, the file is then as before; TypeError for values that
    are not JSON.
    """
    path = Path(path)
    data = _lines(rows).encode("utf-8")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with open(path, "ab+", buffering=0) as file:
            data = _mend_end(file.fileno()) + data
            size = os.fstat(file.fileno()).st_size
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(file.fileno(), rest) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise
        if is_new:
            sync_folder(path.parent)


def mend_jsonl(path: str | Path) -> None:
    """Ends a JSON lines file as its last whole row does: a torn line, left by a kill, is cut off. No file stays none.

    Raises: BadInput where the disk refuses.
    """
    if Path(path).exists():
        append_jsonl(path, [])


def _mend_end(descriptor: int) -> bytes:
    """Cuts a torn last line off; returns what must be written before the next row."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return b""
    data = os.pread(descriptor, size, 0)
    start = data.rfind(b"\n") + 1
    if _row_of(data[start:]) is not None:
        return b"\n"
    os.ftruncate(descriptor, start)
    return b""


def read_jsonl(path: str | Path, *, missing_ok: bool = False) -> list[dict[str, Any]]:
    """Rows of a JSON lines file; a torn last line, left by a kill, is passed over.

    missing_ok: True reads no file as no rows.
    Raises: BadInput where the file is missing, or with the line that is broken.
    """
    return [row for _, row in _raw_rows(Path(path), missing_ok)]


def truncate_jsonl(path: str | Path, keep: Callable[[dict[str, Any]], bool]) -> int:
    """Leaves only the rows for which `keep` is true, atomically, byte for byte as they were.

    A torn last line goes too; no file counts as no rows.
    Returns: the number of rows dropped.
    Raises: BadInput with a broken line, or where the disk refuses.
    """
    path = Path(path)
    rows = _raw_rows(path, missing_ok=True)
    kept = [line for line, row in rows if keep(row)]
    content = b"".join(line + b"\n" for line in kept)
    if path.exists() and content != path.read_bytes():
        write_atomic(path, content)
    return len(rows) - len(kept)


def _raw_rows(path: Path, missing_ok: bool) -> list[tuple[bytes, dict[str, Any]]]:
    if missing_ok and not path.exists():
        return []
    with reading(path):
        lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _row_of(line)
        if row is not None:
            rows.append((line, row))
        elif number < len(lines):  # only what follows the last newline may be torn
            raise BadInput(
                f"{path}:{number}: broken JSON, expected one object; mend or remove the line"
            )
    return rows


def _row_of(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(_json(dict(row)) + "\n" for row in rows)


def _json(value: Any, indent: int | None = None) -> str:
    try:
        text = json.dumps(
            value, ensure_ascii=False, allow_nan=False, indent=indent, default=_plain_number
        )
    except ValueError:
        text = json.dumps(
            _without_nan(value), ensure_ascii=False, indent=indent, default=_plain_number
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair: only an escape can carry it
        return json.dumps(json.loads(text), indent=indent)
    return text


def _plain_number(value: Any) -> Any:
    """numpy's and torch's numbers and arrays as Python's."""
    if hasattr(value, "tolist"):
        return _without_nan(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
