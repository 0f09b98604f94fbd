"""The rule and its words, on counts made by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest

from crestline.crest.duels import Tally
from crestline.crest.verdict import decide, judge
from crestline.formulas.intervals import wilson
from crestline.types import Verdict


def tally(
    wins: list[int], count: int, chosen: tuple[float, int], confirm: tuple[int, float, int] | None
) -> Tally:
    num = len(wins)
    update, confirm_wins, confirm_count = confirm or (None, 0.0, 0)
    return Tally(
        updates_S=tuple(20 * (i + 1) for i in range(num)),
        distances_S=np.linspace(0.5, 5, num),
        wins_S=np.array(wins, dtype=float),
        counts_S=np.full(num, float(count)),
        chosen_wins=chosen[0],
        chosen_count=chosen[1],
        confirm_update=update,
        confirm_wins=confirm_wins,
        confirm_count=confirm_count,
        num_labels=num * count,
    )


def settle(counts: Tally) -> Verdict:
    return decide(counts, confidence=0.95, min_duels=30, answered_by="simulated people", seed=0)


PEAKED = [120, 140, 142, 130, 60, 30, 20, 20]


def test_peaked_reports_the_confirmation() -> None:
    verdict = settle(tally(PEAKED, 200, (282, 400), (60, 106.5, 150)))
    assert (verdict.kind, verdict.update) == ("peaked", 60)
    assert verdict.win_rate == pytest.approx(0.71)
    assert verdict.win_rate_interval == wilson(106.5, 150, 0.9)
    assert verdict.reason.startswith(
        "Simulated people preferred checkpoint-60 to the reference in 71 % of 150 confirmation "
        "duels (90 % interval 65–77 %)"
    )
    assert "checkpoint-160 wins 11 %" in verdict.reason


def test_without_confirmation_the_fit_speaks() -> None:
    verdict = settle(tally(PEAKED, 200, (282, 400), None))
    point = next(p for p in verdict.curve if p.update == verdict.update)
    assert verdict.win_rate == point.win_rate
    assert "by the fitted curve" in verdict.reason


def test_the_test_against_an_even_coin_by_hand() -> None:
    counts = tally(PEAKED, 200, (220, 400), None)
    fit = counts.fit()
    judgement = judge(counts, fit, fit.sample(500, np.random.default_rng(0)), 0.95)
    assert judgement.z == pytest.approx(2.0)  # (220 − 200)/(0.5·20)
    assert judgement.beats > 0.99
    # 216 of 400 is z = 1.6 < 1.645: not established, however good the curve looks.
    assert settle(tally(PEAKED, 200, (216, 400), None)).kind == "nothing_beats_reference"
    assert settle(tally(PEAKED, 200, (217, 400), None)).kind == "peaked"


def test_too_few_duels() -> None:
    verdict = settle(tally(PEAKED, 200, (29, 29), None))
    assert verdict.kind == "not_measured"
    assert verdict.update is None


def test_still_rising_ships_the_last() -> None:
    verdict = settle(tally([105, 110, 115, 120, 125, 130, 135, 140], 200, (280, 400), None))
    assert (verdict.kind, verdict.update) == ("still_rising", 160)
    assert "no decline is established" in verdict.reason


def test_a_likely_decline_ships_the_best_and_says_so() -> None:
    verdict = settle(tally([24, 28, 30, 29, 28, 27, 26, 25], 40, (280, 400), None))
    assert verdict.kind == "still_rising"
    assert verdict.update is not None and verdict.update < 160
    assert "likely" in verdict.reason and "not established" in verdict.reason


def test_curve_intervals_hold_the_estimates() -> None:
    verdict = settle(tally(PEAKED, 200, (282, 400), None))
    assert verdict.curve[0].win_rate == 0.5
    for point, wins in zip(verdict.curve[1:], PEAKED, strict=True):
        assert point.low < point.win_rate < point.high
        assert point.win_rate == pytest.approx(wins / 200, abs=0.08)
        assert (point.num_duels, point.num_wins) == (200, wins)


def test_thirty_checkpoints_take_less_than_two_seconds() -> None:
    wins = [30 if i < 15 else 10 for i in range(30)]
    start = time.process_time()
    settle(tally(wins, 40, (280, 400), None))
    assert time.process_time() - start < 2.0
