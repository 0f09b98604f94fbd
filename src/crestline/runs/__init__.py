"""The run folder: atomic writes, JSONL, parquet, checkpoints, the lock."""

from crestline.runs.checkpoints import (
    checkpoint_path,
    clean_temporary,
    latest_checkpoint,
    list_checkpoints,
    new_folder,
    remove_folder,
)
from crestline.runs.files import (
    append_jsonl,
    mend_jsonl,
    read_json,
    read_jsonl,
    reading,
    truncate_jsonl,
    write_atomic,
    write_json,
    write_jsonl_atomic,
    writing,
)
from crestline.runs.folder import RunFolder
from crestline.runs.lock import FolderLock
from crestline.runs.tables import read_table, write_table

__all__ = [
    "FolderLock",
    "RunFolder",
    "append_jsonl",
    "checkpoint_path",
    "clean_temporary",
    "latest_checkpoint",
    "list_checkpoints",
    "mend_jsonl",
    "new_folder",
    "read_json",
    "read_jsonl",
    "read_table",
    "reading",
    "remove_folder",
    "truncate_jsonl",
    "write_atomic",
    "write_json",
    "write_jsonl_atomic",
    "write_table",
    "writing",
]
