"""The one loop of every stage, and exact resume.

A stage is a source of batches and a loss. The source gives the batch of any update as a function of the seed, the
update, the current weights and what it keeps; so a checkpoint is weights, optimiser, the update's number and what
source and hook keep, and a run that was killed goes on to the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crestline.models.load import OtherModel, load_weights, save_model
from crestline.runs.checkpoints import (
    checkpoint_path,
    clean_temporary,
    list_checkpoints,
    new_folder,
    remove_folder,
)
from crestline.runs.files import read_json, write_json, writing
from crestline.runs.folder import RunFolder
from crestline.training.allocator import freed_memory_kept
from crestline.training.batches import Batch
from crestline.training.health import (
    PAUSED_FILE,
    Unhealthy,
    Watchdog,
    refuse_nonfinite,
    wild_policy,
)
from crestline.training.learner import Learner, Loss
from crestline.training.seeds import stream
from crestline.types import BadInput, NotFinite, Paused, Progress, silent

STATE_FILE = "state.safetensors"
"""Tensors that source and hook keep, in a checkpoint."""
TRAINER_FILES = ("optimizer.safetensors", "trainer.json", STATE_FILE)
"""What only training reads of a checkpoint."""


class Source(Protocol):
    """Where batches come from."""

    def batch(self, update: int) -> tuple[Batch, dict[str, float]]:
        """The batch of this update, and metrics of its making."""
        ...


class Keeper(Protocol):
    """What has a state that later updates depend on; it travels in the checkpoints."""

    def state(self) -> dict[str, Any]:
        """Plain values and tensors by name."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; tensors come back on the CPU."""
        ...


class AfterUpdate(Keeper, Protocol):
    """Looks at the model after every update."""

    @property
    def is_done(self) -> bool:
        """Whether training should end here, before its number of updates."""
        ...

    def after_update(self, update: int, metrics: Mapping[str, float]) -> bool:
        """True keeps this checkpoint for good."""
        ...


@freed_memory_kept()
def fit(
    folder: RunFolder,
    learner: Learner,
    tokenizer: Any,
    source: Source,
    loss: Loss,
    *,
    seed: int,
    hook: AfterUpdate | None = None,
    keepers: Mapping[str, Keeper] | None = None,
    watchdog: Watchdog | None = None,
    on_weights: Callable[[], None] | None = None,
    progress: Progress = silent,
) -> None:
    """Run the updates that are left, from the latest checkpoint; leaves the final one as a checkpoint.

    keepers: what besides weights, optimiser, hook and watchdog travels in the checkpoints, by name.
    on_weights: called whenever the weights have changed.
    Raises Paused, with the folder back at the last good checkpoint, if an update is not finite or the watchdog says so.
    """
    others = {"hook": hook, "health": watchdog}
    kept = {**(keepers or {}), **{name: value for name, value in others.items() if value}}
    start = resume(folder, learner, kept)
    if on_weights:
        on_weights()
    for update in range(start + 1, learner.num_updates + 1):
        if hook and hook.is_done:
            break
        began = time.perf_counter()
        torch.manual_seed(stream(seed, "update", update))
        with rolling_back(folder.path, update, watchdog):
            batch, made = source.batch(update)
            refuse_nonfinite(update, made)
            metrics = {**made, **learner.update(batch, loss, update)}
            if on_weights:
                on_weights()
            metrics["step_seconds"] = round(time.perf_counter() - began, 4)
            folder.append_metrics({"update": update, **metrics})
            if watchdog:
                watchdog.look(update, metrics)
            keep = hook.after_update(update, metrics) if hook else False
        progress(update, learner.num_updates, metrics)
        last = update == learner.num_updates or (hook is not None and hook.is_done)
        if keep or last or update % learner.config.save_updates == 0:
            save_checkpoint(folder.path, learner, tokenizer, update, keep=keep, keepers=kept)
            forget_before(folder.path, good_checkpoint(folder.path, watchdog))
    forget_before(folder.path, max(list_checkpoints(folder.path), default=0))


def good_checkpoint(folder: Path, watchdog: Watchdog | None) -> int:
    """The latest checkpoint to go on from that has proved good; where nobody watches, the latest. 0 if there is none.

    Where none has, the earliest: an earlier pause went back to it, since it had.
    """
    bound = watchdog.verified if watchdog else 1 << 62
    found = resumable(folder)
    return max((update for update in found if update <= bound), default=min(found, default=0))


def resumable(folder: Path) -> list[int]:
    """Checkpoints that training can go on from; of others the weights alone were kept."""
    return [
        update
        for update in list_checkpoints(folder)
        if (checkpoint_path(folder, update) / "optimizer.safetensors").exists()
    ]


@contextmanager
def rolling_back(folder: Path, update: int, watchdog: Watchdog | None) -> Iterator[None]:
    """Raises Paused, with the folder back at the last good checkpoint, for what is unhealthy inside."""
    try:
        yield
    except NotFinite:
        raise rolled_back(folder, wild_policy(update), watchdog) from None
    except Unhealthy as error:
        raise rolled_back(folder, error, watchdog) from None


def rolled_back(folder: Path, error: Unhealthy, watchdog: Watchdog | None) -> Paused:
    """Leave the last good checkpoint as the one to go on from, and say so."""
    good = good_checkpoint(folder, watchdog)
    for update in list_checkpoints(folder):
        if update > good:
            remove_folder(checkpoint_path(folder, update))
    write_json(folder / PAUSED_FILE, {"update": error.update, "reason": str(error), "from": good})
    return Paused(f"{error}: it goes on from {f'checkpoint-{good}' if good else 'the start'}")


def resume(folder: RunFolder, learner: Learner, keepers: Mapping[str, Keeper]) -> int:
    """Take up the latest checkpoint, cut what was written after it, and return its update (0 if none)."""
    clean_temporary(folder.path)
    start = max(resumable(folder.path), default=0)
    folder.cut_to(start)
    for update in list_checkpoints(folder.path):
        if update > start:
            remove_folder(checkpoint_path(folder.path, update))
    if start == 0:
        return 0
    path = checkpoint_path(folder.path, start)
    try:
        load_weights(learner.model, path)
        optimizer = load_file(path / "optimizer.safetensors")
        trainer = read_json(path / "trainer.json")
        states = read_states(path, trainer)
    except OtherModel:
        raise BadInput(
            f"{path} holds another model; remove that folder or choose another --output_dir"
        ) from None
    except Exception as error:
        raise BadInput(
            f"cannot read {path}: {error}; restore it, or start anew in another --output_dir"
        ) from None
    learner.load(optimizer)
    for name, keeper in keepers.items():
        keeper.load(states[name])
    return start


def save_checkpoint(
    folder: Path,
    learner: Learner,
    tokenizer: Any,
    update: int,
    *,
    keep: bool,
    keepers: Mapping[str, Keeper],
) -> None:
    """Write checkpoint-N whole or not at all."""
    path = checkpoint_path(folder, update)
    with new_folder(path) as temporary, writing(path):
        save_model(learner.model, tokenizer, temporary)
        save_file(learner.state(), temporary / "optimizer.safetensors")
        states = {name: keeper.state() for name, keeper in keepers.items()}
        write_states(temporary, {"update": update, "keep": keep}, states)


def write_states(path: Path, trainer: dict[str, Any], states: Mapping[str, dict[str, Any]]) -> None:
    """Plain values of the states into trainer.json, their tensors into state.safetensors."""
    tensors = {
        f"{name}/{key}": value.clone().contiguous()
        for name, state in states.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    if tensors:
        save_file(tensors, path / STATE_FILE)
    rest = {
        name: {key: value for key, value in state.items() if f"{name}/{key}" not in tensors}
        for name, state in states.items()
    }
    write_json(path / "trainer.json", {**trainer, **rest})


def read_states(path: Path, trainer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The states by name, as `write_states` got them."""
    states = {name: dict(values) for name, values in trainer.items() if isinstance(values, dict)}
    if (path / STATE_FILE).exists():
        for label, tensor in load_file(path / STATE_FILE).items():
            name, _, key = label.partition("/")
            states[name][key] = tensor
    return states


def forget_before(folder: Path, update: int) -> None:
    """Of the checkpoints before this one, leave the weights of those that were kept for good."""
    for number in list_checkpoints(folder):
        old = checkpoint_path(folder, number)
        if number >= update or not (old / "optimizer.safetensors").exists():
            continue
        if read_json(old / "trainer.json")["keep"]:
            (old / STATE_FILE).unlink(missing_ok=True)
            (old / "optimizer.safetensors").unlink()
        else:
            remove_folder(old)
