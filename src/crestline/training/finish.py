"""What every training verb does first and last: open the run folder, write model/."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crestline.models.load import save_model
from crestline.runs.checkpoints import new_folder
from crestline.runs.files import writing
from crestline.runs.folder import RunFolder
from crestline.types import BadInput


@contextmanager
def open_stage(output_dir: str, config: dict[str, Any], what: str) -> Iterator[RunFolder]:
    """The run folder of a verb, locked while it works; resumes if the config is the same."""
    folder = RunFolder(Path(output_dir))
    folder.open_or_create({"verb": what, **config}, what=what)
    try:
        yield folder
    except BadInput:
        folder.abandon()
        raise
    finally:
        folder.close()


def finished(folder: RunFolder) -> bool:
    """Whether the verb wrote its model already."""
    there = (folder.path / "model" / name for name in ("config.json", "ensemble.json"))
    return any(path.exists() for path in there)


def ship_final(folder: RunFolder, model: Any, tokenizer: Any) -> Path:
    """Write model/ whole or not at all and return it."""
    path = folder.path / "model"
    with new_folder(path) as temporary, writing(path):
        save_model(model.eval(), tokenizer, temporary)
    return path
