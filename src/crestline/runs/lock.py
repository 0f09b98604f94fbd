"""One process per run folder, or per file: a lock that the system releases however the process ends.

Knows nothing of what the place holds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self

from crestline.runs.files import writing
from crestline.types import BadInput

LOCK_NAME = ".lock"
# File systems without locks (some network disks): better to run unguarded than not at all.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Lock:
    """Holds a place for this process until `release`, the end of a with block, of the object or of the process.

    path: the lock's own file; the end of a with block removes it. place: what it guards. instead: what to choose in
    its place, for the message.
    Raises: BadInput naming the process that holds it already, or where the disk refuses.
    """

    def __init__(self, path: Path, place: Path, instead: str) -> None:
        self.path, self._place, self._instead = path, place, instead
        descriptor = self._held()
        with writing(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Lets go of the place; a second call does nothing."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()
        self.release()

    def _held(self) -> int:
        """The descriptor of the lock's file, held. A file that its holder removed meanwhile guards nothing."""
        while True:
            with writing(self.path):
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            self._close = weakref.finalize(self, os.close, descriptor)
            self._take(descriptor)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self.path), os.fstat(descriptor)):
                    return descriptor
            self._close()

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            self._close()
            raise BadInput(
                f"another crestline process (pid {holder or 'unknown'}) is using {self._place}; "
                f"wait for it, stop it, or choose another {self._instead}"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                self._close()
                with writing(self.path):
                    raise


class FolderLock(Lock):
    """Holds a folder."""

    def __init__(self, folder: Path, instead: str = "--output_dir") -> None:
        super().__init__(folder / LOCK_NAME, folder, instead)


class FileLock(Lock):
    """Holds a file that need not be there yet, by a hidden one beside it. Folders above are made."""

    def __init__(self, file: Path, instead: str = "--output_file") -> None:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(file.with_name(f".{file.name}{LOCK_NAME}"), file, instead)
