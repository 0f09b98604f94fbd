"""Metrics told to others: event files that TensorBoard reads back, and one line where a package is missing."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crestline.runs.files import read_jsonl
from crestline.runs.folder import RunFolder
from crestline.training.configs import Optimization, SftConfig, Tracking
from crestline.training.sft import sft
from crestline.training.trackers import TRACKERS, identity, require_trackers
from crestline.types import BadInput


def settings(task: Path, folder: Path, report_to: str) -> SftConfig:
    return SftConfig(
        model_name_or_path=str(task / "base"),
        dataset_name=str(task / "demonstrations.jsonl"),
        output_dir=str(folder / "run"),
        batch_size=5,
        num_train_epochs=2,
        tracking=Tracking(report_to=report_to),
        optimization=Optimization(learning_rate=1e-2, dtype="float32", save_updates=3),
    )


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: steps and values by name."""
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


def wait_for_the_next_second() -> None:
    """Event files have the second in their names; TensorBoard may read two of one second in the wrong order."""
    time.sleep(1.01 - time.time() % 1)


def test_tensorboard_shows_every_metric_of_every_update(task: Path, tmp_path: Path) -> None:
    sft(settings(task, tmp_path, "tensorboard"))
    rows = read_jsonl(tmp_path / "run/metrics.jsonl")
    shown = events(tmp_path / "run")
    assert len(rows) == 8
    assert set(shown) == set(rows[0]) - {"update"}
    for name, points in shown.items():
        assert [step for step, _ in points] == list(range(1, 9))
        values = [row[name] for row in rows]
        assert [value for _, value in points] == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize("stop", [2, 3, 5, 8])
def test_updates_that_are_done_again_are_shown_once(stop: int, task, tmp_path: Path) -> None:
    config = settings(task, tmp_path, "tensorboard")

    def killed(update: int, num_updates: int, metrics: Any) -> None:
        if update == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sft(config, progress=killed)
    wait_for_the_next_second()
    sft(config)
    assert [step for step, _ in events(tmp_path / "run")["loss"]] == list(range(1, 9))


@pytest.mark.parametrize("number", [1, 3])
def test_a_kill_right_after_a_checkpoint_loses_no_update(number: int, task, tmp_path) -> None:
    config = settings(task, tmp_path, "tensorboard")
    left = number

    def kill(frame: FrameType, event: str, _: Any) -> None:
        nonlocal left
        if event == "return" and frame.f_code.co_name == "save_checkpoint":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

    sys.setprofile(kill)
    try:
        with pytest.raises(KeyboardInterrupt):
            sft(config)
    finally:
        sys.setprofile(None)
    wait_for_the_next_second()
    sft(config)
    assert [step for step, _ in events(tmp_path / "run")["loss"]] == list(range(1, 9))


def test_who_is_told_may_change_and_changes_nothing_else(task: Path, tmp_path: Path) -> None:
    config = settings(task, tmp_path, "none")

    def killed(update: int, num_updates: int, metrics: Any) -> None:
        if update == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sft(config, progress=killed)
    assert not (tmp_path / "run/tensorboard").exists()
    sft(replace(config, tracking=Tracking(report_to="tensorboard")))
    assert [step for step, _ in events(tmp_path / "run")["loss"]] == list(range(4, 9))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_one_line(name: str, task, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None)
    with pytest.raises(BadInput, match=f"--report_to {name}: the package '{name}' is missing"):
        require_trackers(Tracking(report_to=f"none, {name}"))


def test_settings() -> None:
    assert Tracking().trackers == []
    assert Tracking(report_to="wandb, tensorboard").trackers == ["wandb", "tensorboard"]
    with pytest.raises(ValueError, match="report_to must be none or some of tensorboard"):
        Tracking(report_to="mlflow")
    assert set(TRACKERS) == {"tensorboard", "wandb", "trackio"}


def test_a_run_keeps_its_name_and_no_two_share_one(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")
    name = identity(first)
    assert len(name) == 12
    assert identity(RunFolder(tmp_path / "a")) == name != identity(second)
    (tmp_path / "a").rename(tmp_path / "moved")
    assert identity(RunFolder(tmp_path / "moved")) == name != identity(first)
