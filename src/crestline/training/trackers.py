"""Metrics for those who look elsewhere: TensorBoard, Weights & Biases, Trackio, beside metrics.jsonl which is always.

Owns the trackers' packages, imported only when asked for. Knows nothing of what the metrics mean. Torch-free until
TensorBoard is asked for.
"""

from __future__ import annotations

import atexit
import importlib.util
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from crestline.runs.files import reading, write_atomic
from crestline.runs.folder import RunFolder
from crestline.training.configs import Tracking
from crestline.types import BadInput, Progress

IDENTITY_FILE = "tracker_id.txt"
"""In the run folder: by what name trackers know the run."""


class Tracker(Protocol):
    """Somewhere that metrics go."""

    def log(self, update: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run folder's tensorboard/; of updates that are done again only the new values are shown."""

    def __init__(self, folder: RunFolder, tracking: Tracking, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder.path / "tensorboard"), purge_step=first)

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, update)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """One run for each run folder, which goes on when the folder does."""

    def __init__(self, folder: RunFolder, tracking: Tracking, first: int) -> None:
        import wandb

        self.run: Any = wandb.init(
            project=tracking.project,
            name=tracking.run_name or folder.path.name,
            id=identity(folder),
            resume="allow",
            config=folder.read_config(),
            dir=str(folder.path),
        )

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=update)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """One run for each run folder, which goes on when the folder does."""

    def __init__(self, folder: RunFolder, tracking: Tracking, first: int) -> None:
        import trackio

        name = f"{tracking.run_name or folder.path.name}-{identity(folder)}"
        settings = folder.read_config()
        self.run: Any = trackio.init(
            project=tracking.project, name=name, config=settings, resume="allow"
        )

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=update)

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[RunFolder, Tracking, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def identity(folder: RunFolder) -> str:
    """The run's name with trackers, drawn once and kept in its folder: a folder that is made anew gets another.

    Raises BadInput where the disk refuses.
    """
    path = folder.path / IDENTITY_FILE
    if not path.exists():
        write_atomic(path, secrets.token_hex(6) + "\n")
    with reading(path):
        return path.read_text(encoding="utf-8").strip()


def require_trackers(tracking: Tracking) -> None:
    """Raise BadInput, one line, for a tracker whose package is not installed."""
    for name in tracking.trackers:
        if importlib.util.find_spec(name) is None:
            raise BadInput(
                f"--report_to {name}: the package {name!r} is missing; install it: pip install {name}"
            )


def mirrored(tracking: Tracking, folder: RunFolder, progress: Progress) -> Progress:
    """The same progress, which also tells the trackers that were asked for. They are opened at the first update.

    Raises BadInput as `require_trackers`.
    """
    require_trackers(tracking)
    if not tracking.trackers:
        return progress
    opened: list[Tracker] = []

    def told(update: int, num_updates: int, metrics: Mapping[str, float]) -> None:
        if not opened:
            for name in tracking.trackers:
                opened.append(TRACKERS[name](folder, tracking, update))
                atexit.register(opened[-1].close)
        for tracker in opened:
            tracker.log(update, metrics)
            if update == num_updates:
                tracker.close()
                atexit.unregister(tracker.close)
        progress(update, num_updates, metrics)

    return told
