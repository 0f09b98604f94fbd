"""One process per run folder: a lock that the system releases however the process ends.

Knows nothing of what the folder holds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from pathlib import Path

from crestline.runs.files import writing
from crestline.types import BadInput

LOCK_NAME = ".lock"
# File systems without locks (some network disks): better to run unguarded than not at all.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderLock:
    """Holds a folder for this process until `release`, the end of the object or of the process.

    Raises: BadInput naming the process that holds it already, or where the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_NAME
        with writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._close = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            self.release()
            raise BadInput(
                f"another crestline process (pid {holder or 'unknown'}) is using {folder}; "
                "wait for it, stop it, or choose another --output_dir"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                self.release()
                with writing(path):
                    raise
        with writing(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Lets go of the folder; a second call does nothing."""
        self._close()
