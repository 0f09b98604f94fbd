"""The rule and its words, on counts made by hand."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from crestline.crest.duels import Tally
from crestline.crest.verdict import NUM_CURVES, curve_points, decide, judge
from crestline.formulas.curves import StackedFit, win_rate
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
    assert verdict.reason.endswith(
        "from checkpoint-100 on they preferred it less, and checkpoint-160 wins 11 %."
    )


@pytest.mark.parametrize("confirm", [(60, 20.0, 29), (80, 106.5, 150)], ids=["few", "another"])
def test_a_confirmation_that_does_not_count(confirm: tuple[int, float, int]) -> None:
    verdict = settle(tally(PEAKED, 200, (282, 400), confirm))
    point = verdict.curve[3]
    assert verdict.update == point.update == 60
    assert (verdict.win_rate, verdict.win_rate_interval) == (
        point.win_rate,
        (point.low, point.high),
    )
    assert "by the fitted curve" in verdict.reason


def test_thirty_confirmation_duels_count() -> None:
    verdict = settle(tally(PEAKED, 200, (282, 400), (60, 20.0, 30)))
    assert verdict.win_rate == 20 / 30
    assert "of 30 confirmation duels" in verdict.reason


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
    nothing = settle(tally(PEAKED, 200, (216, 400), None))
    assert nothing.kind == "nothing_beats_reference"
    assert "in 54 % of 400 duels, which does not establish a gain" in nothing.reason
    assert settle(tally(PEAKED, 200, (217, 400), None)).kind == "peaked"


@pytest.mark.parametrize(("wins", "kind"), [(22, "nothing_beats_reference"), (23, "still_rising")])
def test_the_fit_must_put_what_ships_above_the_reference(wins: int, kind: str) -> None:
    """Though the chosen duels pass the test: 88 % of the curves are too few, 94 % are enough."""
    counts = tally([wins] * 8, 40, (280, 400), None)
    fit = counts.fit()
    judgement = judge(counts, fit, fit.sample(4000, np.random.default_rng(1)), 0.95)
    assert judgement.beats == pytest.approx(0.88 if wins == 22 else 0.94, abs=0.015)
    assert settle(counts).kind == kind


@pytest.mark.parametrize(
    ("place_of_best", "num_lower", "ships_last"),
    [
        (8.9, 10, True),  # a decline is as likely as not
        (8.9, 11, False),  # 0.55: likely
        (9.0, 18, True),  # likely, and the best lies in the last tenth of the distance
        (9.0, 19, False),  # 0.95: established
    ],
)
def test_what_ships_by_hand(place_of_best: float, num_lower: int, ships_last: bool) -> None:
    """20 curves: the best always beats the reference, the last falls below both in some."""
    distances = np.array([1.0, place_of_best, 10.0])
    means = np.array([[0.5, 1.0, 0.9]])
    fit = StackedFit(("by hand",), np.ones(1), means, np.zeros((1, 3, 3)))
    curves = np.array([[0.5, 1.0, -1.0 if i < num_lower else 2.0] for i in range(20)])
    counts = replace(tally([30, 30, 30], 40, (280, 400), None), distances_S=distances)
    judgement = judge(counts, fit, curves, 0.95)
    assert (judgement.best, judgement.ship) == (1, 2 if ships_last else 1)
    assert judgement.decline == num_lower / 20
    assert judgement.beats == ((20 - num_lower) / 20 if ships_last else 1.0)


def test_too_few_duels() -> None:
    verdict = settle(tally(PEAKED, 200, (29, 29), None))
    assert verdict.kind == "not_measured"
    assert verdict.update is None
    assert settle(tally(PEAKED, 200, (29, 30), None)).kind == "peaked"


def test_still_rising_ships_the_last() -> None:
    verdict = settle(tally([105, 110, 115, 120, 125, 130, 135, 140], 200, (280, 400), None))
    assert (verdict.kind, verdict.update) == ("still_rising", 160)
    assert "no decline is established" in verdict.reason


@pytest.mark.parametrize(
    ("wins", "percent"),
    [([24, 28, 30, 29, 28, 27, 26, 25], 79), ([24, 28, 30, 30, 28, 26, 25, 22], 94)],
)
def test_a_likely_decline_ships_the_best_and_says_so(wins: list[int], percent: int) -> None:
    verdict = settle(tally(wins, 40, (280, 400), None))
    assert (verdict.kind, verdict.update) == ("still_rising", 80)
    assert f"checkpoint-160 is likely ({percent} %) and not established" in verdict.reason


def test_a_verdict_with_its_quantiles_by_hand() -> None:
    """Of 2,000 curves in order, numbers 100 and 1,900 bound the middle 90 %."""
    wins = [6, 7, 7, 8, 8, 8, 9, 9, 9, 9, 8, 8, 8, 8, 7, 7, 7, 7, 6, 6, 6, 6, 5, 5]
    counts = tally(wins, 12, (280, 400), None)
    verdict = settle(counts)
    curves = counts.fit().sample(NUM_CURVES, np.random.default_rng([0, 1]))
    crests = sorted(curves.argmax(axis=1).tolist())
    assert verdict.interval == (20 * (crests[100] + 1), 20 * (crests[1899] + 1))
    rates = np.sort(1 / (1 + np.exp(-curves)), axis=0)
    for i, point in enumerate(verdict.curve[1:]):
        assert rates[99, i] < point.low < rates[100, i]
        assert rates[1899, i] < point.high < rates[1900, i]
        assert point.win_rate == pytest.approx(rates[:, i].mean())


def test_intervals_of_a_curve_by_hand() -> None:
    """101 curves whose win rates are 0.20, 0.205, … 0.70, in any order."""
    rates = np.random.default_rng(0).permutation(0.2 + 0.005 * np.arange(101))
    (reference, point) = curve_points(
        tally([30], 40, (0, 0), None), np.log(rates / (1 - rates))[:, None]
    )
    assert (point.low, point.win_rate, point.high) == pytest.approx((0.225, 0.45, 0.675))
    assert (reference.low, reference.win_rate, reference.high) == (0.5, 0.5, 0.5)


def test_intervals_hold_the_truth_in_nine_of_ten_of_forty_runs() -> None:
    distances = np.linspace(0.25, 5, 20)
    held, widths, shares = 0, [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        cliff = 1.5 / (1 + np.exp(-(distances - rng.uniform(1.5, 4)) / 0.25))
        rates = win_rate(1 - np.exp(-1.6 * distances) + 0.05 * distances - cliff)
        counts = tally(rng.binomial(40, rates).tolist(), 40, (280, 400), None)
        verdict = settle(replace(counts, distances_S=distances))
        assert verdict.interval is not None
        low, high = verdict.interval
        held += low <= 20 * (int(rates.argmax()) + 1) <= high
        widths.append((high - low) / 20)
        shares += [p.low <= r <= p.high for p, r in zip(verdict.curve[1:], rates, strict=True)]
    assert 32 <= held < 40
    assert np.mean(widths) < 6
    assert 0.85 < np.mean(shares) < 0.93


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
