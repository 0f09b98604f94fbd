"""What every training verb does first and last: open the run folder, write model/."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crestline.models.load import save_model
from crestline.models.lora import is_adapted, merged
from crestline.runs.checkpoints import new_folder
from crestline.runs.files import writing
from crestline.runs.folder import RunFolder
from crestline.runs.settings import defaults_of, plain
from crestline.runs.shipped import has_model
from crestline.training.health import PAUSED_FILE, may_change
from crestline.types import BadInput


@contextmanager
def open_stage(config: Any, what: str, **told: Any) -> Iterator[RunFolder]:
    """The run folder of a verb, locked while it works; resumes if the config is the same, or cures a pause.

    config: the verb's settings, with its output_dir. told: what config.yaml says beside them.
    """
    folder = RunFolder(Path(config.output_dir))
    folder.open_or_create(
        {"verb": what, **plain(config), **told},
        what=what,
        ignore=may_change(folder.path),
        defaults=defaults_of(config),
    )
    (folder.path / PAUSED_FILE).unlink(missing_ok=True)
    try:
        yield folder
    except BadInput:
        folder.abandon()
        raise
    finally:
        folder.close()


def finished(folder: RunFolder) -> bool:
    """Whether the verb wrote its model already."""
    return has_model(folder.path)


def ship_final(folder: RunFolder, model: Any, tokenizer: Any) -> Path:
    """Write model/ whole or not at all and return it; of a model with adapters also adapter/, and model/ merged."""
    if is_adapted(model):
        with new_folder(folder.path / "adapter") as temporary, writing(folder.path / "adapter"):
            save_model(model, tokenizer, temporary)
        model = merged(model)
    path = folder.path / "model"
    with new_folder(path) as temporary, writing(path):
        save_model(model.eval(), tokenizer, temporary)
    return path
