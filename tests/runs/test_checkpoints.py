"""Folders come and go whole, also when the writer is killed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from crestline.runs import (
    checkpoint_path,
    clean_temporary,
    latest_checkpoint,
    list_checkpoints,
    new_folder,
    remove_folder,
)
from crestline.types import BadInput


def fill(path: Path, content: str = "x") -> None:
    with new_folder(path) as folder:
        assert folder.name == f".tmp-{path.name}"
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_text(content)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "rl" / "checkpoint-1"
    with new_folder(path) as folder:
        (folder / "a").write_text("x")
        assert not path.exists()
    assert names(path) == ["a"]
    fill(path, "again")
    assert names(path) == ["deep"] and names(tmp_path / "rl") == ["checkpoint-1"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failing_writer_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "checkpoint-1"
    fill(path, "old")
    with pytest.raises(error), new_folder(path) as folder:
        (folder / "half").write_text("x")
        raise error
    assert (path / "deep" / "a").read_text() == "old"
    assert names(tmp_path) == ["checkpoint-1"]


def test_checkpoints_are_listed_by_number(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "none") == [] and latest_checkpoint(tmp_path) is None
    for update in (100, 20, 0):
        fill(checkpoint_path(tmp_path, update))
    (tmp_path / "checkpoint-300").mkdir()
    (tmp_path / "checkpoint-400").write_text("a file")
    (tmp_path / "checkpoint-0500").mkdir()
    (tmp_path / ".tmp-checkpoint-600").mkdir()
    assert list_checkpoints(tmp_path) == [0, 20, 100]
    assert latest_checkpoint(tmp_path) == 100


def test_removing(tmp_path: Path) -> None:
    fill(tmp_path / "checkpoint-1")
    remove_folder(tmp_path / "checkpoint-1")
    remove_folder(tmp_path / "checkpoint-1")
    assert names(tmp_path) == []


def test_leftovers_are_cleaned(tmp_path: Path) -> None:
    (tmp_path / ".tmp-a").mkdir()
    (tmp_path / ".tmp-a" / "b").write_text("x")
    (tmp_path / ".tmp-c").write_text("x")
    (tmp_path / ".tmp-d").symlink_to(tmp_path)
    fill(tmp_path / "checkpoint-1")
    assert clean_temporary(tmp_path, "c") == clean_temporary(tmp_path, "checkpoint") + 1 == 1
    assert names(tmp_path) == [".tmp-a", ".tmp-d", "checkpoint-1"]
    assert clean_temporary(tmp_path) == 2
    assert clean_temporary(tmp_path / "none") == 0
    assert names(tmp_path) == ["checkpoint-1"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        fill(tmp_path / "file" / "checkpoint-1")


def whole(path: Path, content: str) -> bool:
    return (path / "deep" / "a").is_file() and (path / "deep" / "a").read_text() == content


def test_a_kill_at_any_line_leaves_whole_checkpoints(
    killed_at_every_line: Callable[..., int],
) -> None:
    """Checkpoint 2 comes and checkpoint 1 goes; then what is left is cleaned up."""
    seen = set()

    def act(folder: Path) -> None:
        fill(folder / "checkpoint-2", "two")
        remove_folder(folder / "checkpoint-1")

    def check(folder: Path, ended: bool) -> None:
        updates = list_checkpoints(folder)
        seen.add(tuple(updates))
        assert updates == [2] if ended else updates
        assert all(whole(folder / f"checkpoint-{n}", {1: "one", 2: "two"}[n]) for n in updates)
        clean_temporary(folder)
        assert names(folder) == [f"checkpoint-{n}" for n in updates]

    assert (
        killed_at_every_line(lambda folder: fill(folder / "checkpoint-1", "one"), act, check) > 30
    )
    assert seen == {(1,), (1, 2), (2,)}


def test_a_kill_while_a_folder_is_replaced_leaves_old_new_or_none(
    killed_at_every_line: Callable[..., int],
) -> None:
    def check(folder: Path, ended: bool) -> None:
        path = folder / "model"
        assert whole(path, "new") or (not ended and (whole(path, "old") or not path.exists()))

    killed_at_every_line(
        lambda folder: fill(folder / "model", "old"),
        lambda folder: fill(folder / "model", "new"),
        check,
    )
