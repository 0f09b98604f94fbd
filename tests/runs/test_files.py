"""Files are whole or not there: kills, torn lines, full disks, missing rights."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crestline.runs import (
    append_jsonl,
    mend_jsonl,
    new_folder,
    read_json,
    read_jsonl,
    truncate_jsonl,
    write_atomic,
    write_json,
    write_jsonl_atomic,
    write_table,
    writing,
)
from crestline.types import BadInput

in_a_file = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=[]), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)  # fmt: skip
ROW = st.dictionaries(st.text(max_size=3), VALUE, max_size=3)


def killed_after(code: str, *arguments: str, seconds: float) -> None:
    """Runs code in a process, waits for its first line, and kills it -9 a moment later."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"cannot mount a small disk: {error}")
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_written_text_is_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_atomic(path, "ü")
    write_atomic(path, b"\xff")
    assert path.read_bytes() == b"\xff"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]
    mask = os.umask(0o022)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@in_a_file
@given(rows=st.lists(ROW, max_size=4), more=st.lists(ROW, max_size=4))
def test_rows_come_back(tmp_path: Path, rows: list[Any], more: list[Any]) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl_atomic(path, rows)
    append_jsonl(path, more)
    assert read_jsonl(path) == rows + more
    write_json(path, rows)
    assert read_json(path) == rows


@in_a_file
@given(rows=st.lists(ROW, min_size=1, max_size=4), cut=st.integers(1, 60))
def test_a_torn_last_line_is_passed_over_and_mended(
    tmp_path: Path, rows: list[Any], cut: int
) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl_atomic(path, rows)
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    left = data[:-cut].count(b"\n")
    found = read_jsonl(path)
    assert found in (rows[:left], rows[: left + 1])
    append_jsonl(path, [{"new": 1}])
    assert read_jsonl(path) == [*found, {"new": 1}]


@in_a_file
@given(rows=st.lists(ROW, min_size=1, max_size=4), cut=st.integers(0, 60))
def test_mending_leaves_whole_rows_as_they_were(tmp_path: Path, rows: list[Any], cut: int) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl_atomic(path, rows)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut])
    found = read_jsonl(path)
    mend_jsonl(path)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[: len(found)])
    mend_jsonl(tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


def test_a_zeroed_end_is_torn_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\0\0\0\0')
    assert read_jsonl(path) == [{"a": 1}]
    assert truncate_jsonl(path, lambda row: True) == 0
    assert path.read_bytes() == b'{"a": 1}\n'


def test_numbers_that_json_has_not(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"a": math.nan, "b": [math.inf, np.float32(0.5)], "c": np.int64(3), "d": np.arange(2)}
    append_jsonl(path, [row])
    assert path.read_text() == '{"a": null, "b": [null, 0.5], "c": 3, "d": [0, 1]}\n'
    with pytest.raises(TypeError, match="Path"):
        write_json(path, {"a": path})
    assert len(read_jsonl(path)) == 1


def test_truncate_leaves_bytes_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"update":1, "x":1.50}\n{"update": 2}\n{"update": 3}')
    assert truncate_jsonl(path, lambda row: row["update"] <= 1) == 2
    assert path.read_text() == '{"update":1, "x":1.50}\n'
    assert truncate_jsonl(tmp_path / "none.jsonl", lambda row: False) == 0


def test_broken_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 2}\n')
    for use in (read_jsonl, lambda p: truncate_jsonl(p, lambda row: True)):
        with pytest.raises(BadInput, match=r"rows\.jsonl:2: broken JSON"):
            use(path)
    with pytest.raises(BadInput, match=r"rows\.jsonl: broken JSON"):
        read_json(path)
    assert read_jsonl(tmp_path / "none.jsonl", missing_ok=True) == []
    for read in (read_json, read_jsonl):
        with pytest.raises(BadInput, match=r"cannot read .*none\.jsonl: no such file"):
            read(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "x"), "no space left on device; free some space and run again"),
        (OSError(errno.EDQUOT, "x"), "disk quota exceeded; free some space"),
        (OSError(errno.EROFS, "x"), "read-only file system; choose a place on a writable disk"),
        (OSError(errno.EACCES, "x"), "permission denied; choose a place"),
        (OSError("[Errno 28] Error writing bytes. Detail: x"), "no space left on device; free"),
        (RuntimeError("I/O error: full (os error 28)"), "no space left on device; free"),
        (OSError("strange"), "input/output error; check the path and the disk"),
    ],
)
def test_what_a_failing_disk_says(error: Exception, told: str) -> None:
    with pytest.raises(BadInput) as caught, writing("runs/x/config.yaml"):
        raise error
    assert str(caught.value).startswith(f"cannot write runs/x/config.yaml: {told}")


def test_other_errors_pass() -> None:
    for error in (ValueError("no disk in it"), BadInput("mine")):
        with pytest.raises(type(error)) as caught, writing("x"):
            raise error
        assert caught.value is error


def test_a_file_or_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "folder", tmp_path / ("x" * 300)):
        for write in (
            lambda p: write_atomic(p, "a"),
            lambda p: append_jsonl(p, [{}]),
        ):
            with pytest.raises(BadInput, match="cannot write"):
                write(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_a_full_disk_leaves_everything_as_it_was(small_disk: Path) -> None:
    from safetensors.numpy import save_file

    rows, model = small_disk / "rows.jsonl", small_disk / "checkpoint-1"
    append_jsonl(rows, [{"update": 1}])
    write_atomic(small_disk / "config.yaml", "seed: 0\n")
    much = "x" * 200_000
    tries: dict[str, Any] = {
        "append": lambda: append_jsonl(rows, [{"update": 2}, {"text": much}]),
        "atomic": lambda: write_atomic(small_disk / "config.yaml", much),
        "table": lambda: write_table(small_disk / "t.parquet", {"a": list(np.random.rand(30_000))}),
    }
    for name, attempt in tries.items():
        with pytest.raises(BadInput, match="no space left on device; free some space"):
            attempt()
        assert sorted(p.name for p in small_disk.iterdir()) == ["config.yaml", "rows.jsonl"], name
    with pytest.raises(BadInput, match="checkpoint-1: no space left"), new_folder(model) as folder:
        save_file({"w": np.zeros(50_000)}, folder / "model.safetensors")
    assert sorted(p.name for p in small_disk.iterdir()) == ["config.yaml", "rows.jsonl"]
    assert read_jsonl(rows) == [{"update": 1}]
    assert (small_disk / "config.yaml").read_text() == "seed: 0\n"
    append_jsonl(rows, [{"update": 2}])
    assert len(read_jsonl(rows)) == 2


def test_no_permission(tmp_path: Path) -> None:
    """Root may write everywhere, so a child process gives its rights up first."""
    if os.getuid() != 0:
        pytest.skip("needs root to give up rights")
    for folder in [tmp_path, *list(tmp_path.parents)[:2]]:
        folder.chmod(0o755)
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "secret.json").chmod(0)
    code = (
        "import os, sys\n"
        "from crestline.runs import RunFolder, append_jsonl, new_folder, read_json, write_atomic\n"
        "from crestline.types import BadInput\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "def fill(path):\n"
        "    with new_folder(path): pass\n"
        "for use in (lambda p: write_atomic(p, 'x'), lambda p: append_jsonl(p, [{}]), fill,\n"
        "            lambda p: RunFolder(p).open_or_create({}, what='run'),\n"
        "            lambda p: read_json(p.replace('new', 'secret.json'))):\n"
        "    try: use(sys.argv[1])\n"
        "    except BadInput as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "new")],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert all("new: permission denied; choose a place" in line for line in lines[:4]), lines
    assert "cannot read" in lines[4] and "secret.json: permission denied" in lines[4]


def test_kills_leave_whole_rows_and_files(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from crestline.runs import append_jsonl, write_json\n"
        "folder, start, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[2])\n"
        "while True:\n"
        "    append_jsonl(folder + '/rows.jsonl', [{'n': n, 'text': 'x' * 50_000}])\n"
        "    write_json(folder + '/state.json', {'n': n, 'more': list(range(5_000))})\n"
        "    if n == start: print('ready', flush=True)\n"
        "    n += 1\n"
    )
    num_rows = 0
    for seconds in (0.02, 0.05, 0.11):
        killed_after(code, str(tmp_path), str(num_rows), seconds=seconds)
        rows = read_jsonl(tmp_path / "rows.jsonl", missing_ok=True)
        assert [row["n"] for row in rows] == list(range(len(rows)))
        assert len(rows) >= num_rows
        num_rows = len(rows)
        if (tmp_path / "state.json").exists():
            assert num_rows - 2 <= read_json(tmp_path / "state.json")["n"] < num_rows
    assert num_rows > 0
    append_jsonl(tmp_path / "rows.jsonl", [{"n": num_rows}])
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == list(range(num_rows + 1))


def test_a_kill_at_any_line_leaves_the_old_or_the_new(
    killed_at_every_line: Callable[..., int],
) -> None:
    """A file is replaced, a log grows, a log is cut."""
    seen = set()

    def prepare(folder: Path) -> None:
        write_atomic(folder / "state.json", "1")
        (folder / "rows.jsonl").write_text('{"n": 0}\n{"n": 1}\n{"n": 2, "tor')

    def act(folder: Path) -> None:
        append_jsonl(folder / "rows.jsonl", [{"n": 2}])
        write_json(folder / "state.json", 2)
        truncate_jsonl(folder / "rows.jsonl", lambda row: row["n"] < 1)

    def check(folder: Path, ended: bool) -> None:
        state = read_json(folder / "state.json")
        rows = [row["n"] for row in read_jsonl(folder / "rows.jsonl")]
        seen.add((state, *rows))
        if ended:
            assert (state, *rows) == (2, 0)

    assert killed_at_every_line(prepare, act, check) > 30
    assert seen == {(1, 0, 1), (1, 0, 1, 2), (2, 0, 1, 2), (2, 0)}
