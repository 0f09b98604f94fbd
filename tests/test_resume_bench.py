"""bench/resume.py can fail: it tells a program that forgets from one that goes on, and counts only real kills."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

# A stage in small: a log, a state every three updates, a result. What it adds up is lost where it forgets.
PROGRAM = """
import sys, time
from pathlib import Path
from crestline.runs.files import read_json, write_json
from crestline.runs.folder import RunFolder

folder = RunFolder("out")
folder.open_or_create({"seed": 0}, what="run")
state, result = Path("out/state.json"), Path("out/sum.json")
update, total = read_json(state) if state.exists() else (0, 0)
if sys.argv[1] == "forgetful":
    total = 0
folder.cut_to(update)
while update < 12:
    update, total = update + 1, total + update
    time.sleep(0.01)
    folder.append_metrics({"update": update, "loss": total, "step_seconds": time.time()})
    if update % 3 == 0:
        write_json(state, [update, total])
time.sleep(60 if sys.argv[1] == "slow" else 0.02)
write_json(result, total)
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "bench"))
    import resume

    return resume


@pytest.fixture
def job(bench: ModuleType, tmp_path: Path) -> Any:
    (tmp_path / "program.py").write_text(PROGRAM)

    def of(kind: str) -> Any:
        return bench.Job(kind, (str(tmp_path / "program.py"), kind))

    return of


def kills(bench: ModuleType, job: Any, work: Path) -> list[dict[str, Any]]:
    """Four kills that count, two of them at the disk, one of the others twice."""
    whole = bench.in_peace(job, work / job.name)
    slots = [bench.Slot(job, n, at_disk=n % 2 == 1, twice=n == 2) for n in range(4)]
    return [row for slot in slots for row in bench.until_it_counts(slot, 0, whole, work)]


def test_a_program_that_goes_on_is_identical(bench, job, tmp_path: Path, monkeypatch) -> None:
    again: list[bool] = []
    kill_again = bench.kill_again

    def noted(*given: Any) -> bool:
        again.append(kill_again(*given))
        return again[-1]

    monkeypatch.setattr(bench, "kill_again", noted)
    rows = kills(bench, job("faithful"), tmp_path)
    figures = bench.figures_of(rows)
    assert figures["kills"] == figures["identical"] == 4
    assert figures["at_disk"] == 2
    assert len(again) == 1 and figures["twice_killed"] == sum(again)  # it may have ended first
    assert figures["by_job"] == {"faithful": {"kills": 4, "identical": 4}}


def test_a_program_that_forgets_is_different(bench, job, tmp_path: Path) -> None:
    rows = kills(bench, job("forgetful"), tmp_path)
    late = [
        row for row in rows if row["counts"] and row["lines"] > 3
    ]  # there was something to forget
    figures = bench.figures_of(rows)
    assert late and figures["kills"] == 4 and figures["identical"] <= 4 - len(late)
    for row in late:
        assert "sum.json" in row["different"]
        assert Path(row["kept"], "out").is_dir()


@pytest.mark.parametrize(("kind", "killed"), [("slow", True), ("faithful", False)])
def test_it_is_killed_again_unless_it_came_to_its_end(bench, job, tmp_path, kind, killed) -> None:
    """The slow one takes a minute more after its last line."""
    whole = bench.in_peace(job("faithful"), tmp_path / "whole")
    out = tmp_path / "place" / "out"
    out.mkdir(parents=True)
    given = replace(whole, end=whole.end + (0 if killed else 1000))
    assert bench.kill_again(job(kind), out.parent, given, Random(0)) is killed
    assert (out / "sum.json").exists() is not killed


def test_what_was_killed_twice_says_so(bench, job, tmp_path, monkeypatch) -> None:
    whole = bench.in_peace(job("faithful"), tmp_path / "whole")
    for killed in (True, False):
        monkeypatch.setattr(bench, "kill_again", lambda *given, killed=killed: killed)
        for twice in (True, False):
            slot = bench.Slot(job("faithful"), 1, at_disk=True, twice=twice)
            figures = bench.figures_of(bench.until_it_counts(slot, 0, whole, tmp_path))
            assert (figures["kills"], figures["twice_killed"]) == (1, int(killed and twice))


def test_kills_that_come_too_late_do_not_count(bench, job, tmp_path: Path) -> None:
    whole = bench.in_peace(job("faithful"), tmp_path / "whole")
    late = replace(whole, moments=[(0.1, 1000)], end=0.2)
    slot = bench.Slot(job("faithful"), 0, at_disk=False, twice=True)
    figures = bench.figures_of(bench.until_it_counts(slot, 0, late, tmp_path))
    assert figures["kills"] == 0 and figures["not_counted"] == bench.DRAWS


def test_every_step_at_the_disk_can_be_the_last(bench, job, tmp_path: Path) -> None:
    whole = bench.in_peace(job("faithful"), tmp_path / "whole")
    kinds = {whole.steps[number - 1][0] for number in whole.later_steps}
    assert kinds == {"fsync", "open", "rename", "write"}
    one_of = {whole.steps[number - 1][0]: number for number in whole.later_steps}
    for kind, number in one_of.items():
        place = tmp_path / kind
        command = bench.at_the_disk(job("faithful"), place, "--step", str(number))
        with bench.started(command, place) as process:
            bench.wait(process, bench.never)
        assert process.returncode == -9
        assert bench.differences(bench.fingerprint(place / "out"), whole.files)
    torn = Path(tmp_path / "write" / "out" / "metrics.jsonl").read_bytes()
    assert torn.count(b"\n") == 11 and not torn.endswith(b"\n")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model/weights", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("metrics.jsonl", lambda data: data.replace(b"0.5", b"0.50000001")),
        ("metrics.jsonl", lambda data: data + b'{"update": 3}\n'),
        ("run.json", lambda data: data.replace(b"done", b"new")),
        (".tmp-left", lambda data: b""),
        ("report.html", None),
    ],
)
def test_what_was_tampered_with_is_different(bench, tmp_path: Path, name: str, change) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, seconds in ((first, 1.0), (second, 2.0)):
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "weights").write_bytes(bytes(100))
        rows = [{"update": n, "loss": 0.5, "step_seconds": seconds} for n in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        stages = {"rl": {"state": "done", "seconds": seconds}}
        (folder / "run.json").write_text(json.dumps({"stages": stages}))
        (folder / "report.html").write_text(f"{seconds} s")
        (folder / ".lock").write_text(str(seconds))
    whole = bench.fingerprint(first)
    assert bench.differences(bench.fingerprint(second), whole) == []
    if change:
        path = second / name
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))
    else:
        (second / name).unlink()
    assert bench.differences(bench.fingerprint(second), whole) == [name]
