"""The one loop of every stage, and exact resume.

A stage is a source of batches and a loss. The source gives the batch of any update as a function of the seed, the
update and the current weights; so a checkpoint is weights, optimiser and the update's number, and a run that was
killed goes on to the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

from crestline.models.load import save_model
from crestline.runs.checkpoints import (
    checkpoint_path,
    clean_temporary,
    list_checkpoints,
    new_folder,
    remove_folder,
)
from crestline.runs.files import read_json, write_json, writing
from crestline.runs.folder import RunFolder
from crestline.training.batches import Batch
from crestline.training.learner import Learner, Loss
from crestline.training.seeds import stream
from crestline.types import BadInput

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after every update with (update, number of updates, metrics)."""


class Source(Protocol):
    """Where batches come from."""

    def batch(self, update: int) -> tuple[Batch, dict[str, float]]:
        """The batch of this update, and metrics of its making."""
        ...


class AfterUpdate(Protocol):
    """Looks at the model after every update; its state travels in the checkpoints."""

    def after_update(self, update: int, metrics: Mapping[str, float]) -> bool:
        """True keeps this checkpoint for good."""
        ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


def silent(update: int, num_updates: int, metrics: Mapping[str, float]) -> None:
    """Show nothing."""


def fit(
    folder: RunFolder,
    learner: Learner,
    tokenizer: Any,
    source: Source,
    loss: Loss,
    *,
    seed: int,
    hook: AfterUpdate | None = None,
    on_weights: Callable[[], None] | None = None,
    progress: Progress = silent,
) -> None:
    """Run the updates that are left, from the latest checkpoint; leaves the final one as a checkpoint.

    on_weights: called whenever the weights have changed. Raises Paused if an update is not finite.
    """
    start = resume(folder, learner, hook)
    if on_weights:
        on_weights()
    for update in range(start + 1, learner.num_updates + 1):
        began = time.perf_counter()
        torch.manual_seed(stream(seed, "update", update))
        batch, made = source.batch(update)
        metrics = {**made, **learner.update(batch, loss, update)}
        if on_weights:
            on_weights()
        metrics["step_seconds"] = round(time.perf_counter() - began, 4)
        folder.append_metrics({"update": update, **metrics})
        keep = hook.after_update(update, metrics) if hook else False
        last = update == learner.num_updates
        if keep or last or update % learner.config.save_updates == 0:
            save_checkpoint(folder.path, learner, tokenizer, update, keep=keep, hook=hook)
        progress(update, learner.num_updates, metrics)


def resume(folder: RunFolder, learner: Learner, hook: AfterUpdate | None) -> int:
    """Take up the latest checkpoint, cut what was written after it, and return its update (0 if none)."""
    clean_temporary(folder.path)
    resumable = [
        update
        for update in list_checkpoints(folder.path)
        if (checkpoint_path(folder.path, update) / "optimizer.safetensors").exists()
    ]
    start = max(resumable, default=0)
    folder.cut_to(start)
    for update in list_checkpoints(folder.path):
        if update > start:
            remove_folder(checkpoint_path(folder.path, update))
    if start == 0:
        return 0
    forget_before(folder.path, start)
    path = checkpoint_path(folder.path, start)
    try:
        weights = load_file(path / "model.safetensors")
        optimizer = load_file(path / "optimizer.safetensors")
        trainer = read_json(path / "trainer.json")
    except Exception as error:
        raise BadInput(
            f"cannot read {path}: {error}; restore it, or start anew in another --output_dir"
        ) from None
    missing, unexpected = learner.model.load_state_dict(weights, strict=False)
    tied = set(getattr(learner.model, "all_tied_weights_keys", None) or ())
    if set(missing) - tied or unexpected:
        raise BadInput(
            f"{path} holds another model; remove that folder or choose another --output_dir"
        )
    learner.load(optimizer)
    if hook:
        hook.load(trainer["hook"])
    return start


def save_checkpoint(
    folder: Path,
    learner: Learner,
    tokenizer: Any,
    update: int,
    *,
    keep: bool,
    hook: AfterUpdate | None,
) -> None:
    """Write checkpoint-N whole or not at all; the one before it keeps its weights only, or goes."""
    path = checkpoint_path(folder, update)
    with new_folder(path) as temporary, writing(path):
        save_model(learner.model, tokenizer, temporary)
        save_file(learner.state(), temporary / "optimizer.safetensors")
        trainer = {"update": update, "keep": keep, "hook": hook.state() if hook else {}}
        write_json(temporary / "trainer.json", trainer)
    forget_before(folder, update)


def forget_before(folder: Path, update: int) -> None:
    """Of the checkpoints before this one, leave the weights of those that were kept for good."""
    for number in list_checkpoints(folder):
        old = checkpoint_path(folder, number)
        if number >= update or not (old / "optimizer.safetensors").exists():
            continue
        if read_json(old / "trainer.json")["keep"]:
            (old / "optimizer.safetensors").unlink()
        else:
            remove_folder(old)
