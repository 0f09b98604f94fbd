"""bench/crest_sim.py counts only intervals that can hold a crest, and writes down how it was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from crestline.types import Verdict

VERDICT = Verdict(
    kind="peaked",
    update=40,
    interval=(40, 60),
    distance=1.0,
    win_rate=0.7,
    win_rate_interval=(0.6, 0.8),
    num_labels=100,
    answered_by="simulated people",
    reason="",
)


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    import crest_sim

    return crest_sim


@pytest.mark.parametrize(
    ("golds", "held"),
    [
        ([0.0, 0.5, 1.0, 0.2, 0.1], True),
        ([0.0, 0.5, 0.2, 1.0, 0.1], True),
        ([0.0, 1.0, 0.5, 0.2, 0.1], False),
        ([0.0, 0.1, 0.2, 0.5, 1.0], False),
        ([0.0, 0.0, 0.0, 0.0, 0.0], None),
        ([0.0, -0.1, -0.2, -0.3, -0.4], None),
    ],
)
def test_an_interval_is_counted_where_there_is_a_gain(
    sim: ModuleType, golds: list[float], held: bool | None
) -> None:
    assert sim.holds_best(VERDICT, np.array(golds)) is held
    assert sim.holds_best(replace(VERDICT, interval=None), np.array(golds)) is None


def test_the_record_says_how_it_was_measured(
    sim: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sim, "TRUTHS", {name: sim.TRUTHS[name] for name in ("cliff at 2", "flat")})
    monkeypatch.setattr(sim, "NUM_LABELS", (1000,))
    monkeypatch.setattr(sim, "FLIPS", (0.25,))
    monkeypatch.setattr(sim, "RUNS_FULL", 2)
    monkeypatch.setattr(sim, "RESULTS", tmp_path / "results" / "crest_sim.json")
    monkeypatch.setattr("sys.argv", ["crest_sim.py", "--full", "--seed", "3"])
    sim.main()
    record = json.loads(sim.RESULTS.read_text())
    cliff, flat = record["rows"]
    assert (record["num_runs"], record["seeds"]) == (2, [3, 4])
    assert record["machine"].keys() >= {"processor", "commit"}
    assert {"min", "median", "max", "mean"} <= cliff["watch"].keys() & cliff["gold_lost"].keys()
    assert cliff["num_intervals"] == record["intervals_of_peaks_1000_labels_25_percent_flips"] == 2
    assert cliff["right_interval"][0] <= cliff["right"] / 2 <= cliff["right_interval"][1]
    assert (flat["num_intervals"], flat["covered"], flat["covered_interval"]) == (0, 0, None)
    assert flat["watch"] is None and 0 < flat["band"] <= 1
    del record["rows"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == record


def test_runs_of_another_number_are_not_written(
    sim: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sim, "RESULTS", tmp_path / "crest_sim.json")
    monkeypatch.setattr(sim, "table", lambda num_runs, seed: [])
    monkeypatch.setattr(sim, "figures", lambda rows: {})
    monkeypatch.setattr("sys.argv", ["crest_sim.py", "--num_runs", "5"])
    sim.main()
    assert not sim.RESULTS.exists()
    monkeypatch.setattr("sys.argv", ["crest_sim.py", "--num_runs", "5", "--full"])
    with pytest.raises(SystemExit):
        sim.main()
