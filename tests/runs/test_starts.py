"""A start that failed at once, and a look beforehand, leave the folder as it was."""

from pathlib import Path

import pytest

from crestline.runs.folder import RunFolder
from crestline.types import BadInput


def test_an_abandoned_start_leaves_no_trace(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b")
    folder.open_or_create({"seed": 1}, what="run")
    (folder.path / "data").mkdir()
    (folder.path / "data" / "texts.jsonl").write_text("{}\n")
    folder.abandon("data")
    assert not list(tmp_path.iterdir())
    folder.open_or_create({"seed": 2}, what="run")  # other settings are no conflict
    folder.close()


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open_or_create({"seed": 1}, what="run")
    folder.abandon()
    assert tmp_path.is_dir() and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoint-3", "thesis.txt"])
def test_work_is_never_abandoned(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path / "a")
    folder.open_or_create({"seed": 1}, what="run")
    (folder.path / name).write_text("work")
    folder.abandon("data")
    assert {path.name for path in folder.path.iterdir()} == {"config.yaml", ".lock", name}


def test_a_run_that_resumed_is_never_abandoned(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    folder.open_or_create({"seed": 1}, what="run")
    folder.close()
    again = RunFolder(tmp_path / "a")
    assert again.open_or_create({"seed": 1}, what="run")
    again.abandon()
    assert again.config_path.is_file()


def test_a_look_touches_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    assert not folder.check({"seed": 1}, what="run")
    assert not list(tmp_path.iterdir())
    folder.open_or_create({"seed": 1}, what="run")
    folder.close()
    assert folder.check({"seed": 1}, what="run")
    with pytest.raises(BadInput, match="seed is 1 there and 2 here"):
        folder.check({"seed": 2}, what="run")
    assert folder.check({"seed": 2}, what="run", ignore=["seed"])


def test_a_look_refuses_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="not empty"):
        RunFolder(tmp_path).check({}, what="run")
    with pytest.raises(BadInput, match="not a folder"):
        RunFolder(tmp_path / "thesis.txt").check({}, what="run")
