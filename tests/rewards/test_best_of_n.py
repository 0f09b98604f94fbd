"""Figures of best-of-n on scores whose truth is known, and how often a fall is claimed where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crestline.rewards.best_of_n import Scored, best_of_n_figures, turn

Array = NDArray[np.float64]


def samples(
    num_prompts: int, num_samples: int, seed: int, judge: Callable[[Array], Array] | None = None
) -> list[Scored]:
    """Normal scores around a mean of each prompt's own; judge: of the deviation from it."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(num_prompts):
        deviation = rng.normal(size=num_samples)
        judged = judge(deviation) + rng.normal(size=num_samples) if judge else np.zeros(0)
        found.append(
            Scored(
                prompt=f"p{number}",
                completions=tuple(f"c{n}" for n in range(num_samples)),
                scores=tuple((deviation + rng.normal(0, 3)).tolist()),
                judge_scores=tuple(judged.tolist()),
            )
        )
    return found


def test_gains_are_those_of_normal_order_statistics() -> None:
    found = best_of_n_figures(samples(300, 32, 0), num_resamples=300)
    rows = {row["n"]: row for row in found["curve"]}
    assert list(rows) == [1, 2, 4, 8, 16, 32]
    expected = {1: 0.0, 2: 0.5642, 4: 1.0294, 8: 1.4236, 16: 1.7660, 32: 2.0697}  # tables
    for n, gain in expected.items():
        assert rows[n]["score_gain"] == pytest.approx(gain, abs=0.1)
        assert rows[n]["score_gain_low"] <= rows[n]["score_gain"] <= rows[n]["score_gain_high"]
    assert rows[32]["score_gain_high"] - rows[32]["score_gain_low"] < 0.2
    assert rows[32]["score_high"] - rows[32]["score_low"] > 0.4  # prompts differ
    assert rows[8]["kl_bound"] == pytest.approx(1.2044, abs=1e-4)
    assert rows[8]["distance_bound"] == pytest.approx(1.2044**0.5, abs=1e-4)
    assert found["standard_deviation"] == {"score": pytest.approx(1.0, abs=0.03)}
    assert found["judge_turn"] is None and found["score_turn"]["gain_shown"]
    assert found["num_prompts"] == 300 and found["num_completions"] == 9600


def test_a_judge_who_turns_is_seen() -> None:
    """Best at a score 1 above the mean: E of the best of 4 is there, of the best of 64 far beyond."""
    found = best_of_n_figures(
        samples(150, 64, 1, judge=lambda s: -2 * (s - 1) ** 2), num_resamples=400
    )
    turn = found["judge_turn"]
    assert turn["peak_n"] in (4, 8)
    assert turn["gain_shown"] and turn["fall_shown"]
    assert 0 < turn["fall_low"] < turn["fall"]


def test_a_judge_who_agrees_does_not_fall() -> None:
    turn = best_of_n_figures(samples(100, 64, 2, judge=lambda s: s), num_resamples=300)[
        "judge_turn"
    ]
    assert turn["peak_n"] == 64 and turn["gain_shown"] and not turn["fall_shown"]
    assert turn["fall"] == 0


def test_chance_alone_is_rarely_called_a_turn() -> None:
    """Curves of noise in 400 worlds: a fall from the peak, or a gain, in 5 % of them, give or take 2.5 % of chance.

    Bounds for the falls from the peak alone, as if it had not been looked for, claim one in a fifth.
    """
    rng = np.random.default_rng(0)
    sizes, num_prompts, worlds = [1, 2, 4, 8, 16, 32], 60, 400
    falls = gains = 0
    for _ in range(worlds):
        curve_PG = rng.normal(size=(num_prompts, len(sizes)))
        times_BP = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=300)
        found = turn(sizes, curve_PG.mean(0), times_BP @ curve_PG / num_prompts)
        falls, gains = falls + found["fall_shown"], gains + found["gain_shown"]
    assert falls <= 0.075 * worlds and gains <= 0.075 * worlds


def test_nothing_is_claimed_from_few_prompts() -> None:
    """Resamples of a few prompts are too narrow: scores that plainly rise and fall are shown from 20 prompts on."""

    def turn_of(num_prompts: int) -> dict[str, Any]:
        judged = samples(num_prompts, 64, 1, judge=lambda s: -20 * (s - 1) ** 2)
        return dict(best_of_n_figures(judged, num_resamples=200)["judge_turn"])

    few, enough = turn_of(19), turn_of(20)
    assert not few["gain_shown"] and not few["fall_shown"] and few["fall_low"] is None
    assert enough["gain_shown"] and enough["fall_shown"]
    assert few["gain"] > 0 and few["fall"] > 0  # seen, and not claimed


def test_a_fall_in_the_middle_is_seen() -> None:
    """What the largest n is too noisy to show, a smaller one does: three curves with known noise."""
    rng = np.random.default_rng(0)
    mean_G = np.array([0.0, -1.0, -1.1])
    replicates_BG = mean_G + rng.normal(size=(2000, 3)) * [0.1, 0.1, 5.0]
    found = turn([1, 2, 4], mean_G, replicates_BG)
    assert found["peak_n"] == 1 and found["fall_shown"] and not found["gain_shown"]
    assert 0.6 < found["fall_low"] < 0.8  # 1 less about 2 of the 0.14
    assert found["fall"] == pytest.approx(1.1)
    rising = turn([1, 2, 4], -mean_G, -replicates_BG)
    assert rising["peak_n"] == 4 and rising["gain_shown"]  # at n = 2, whatever n = 4 does
    assert rising["fall_low"] is None and not rising["fall_shown"]


def test_equal_scores_and_repeated_answers() -> None:
    flat = Scored(
        prompt="p", completions=("a", "a", "b"), scores=(1.0,) * 3, judge_scores=(0.0, 3.0, 6.0)
    )
    other = Scored(prompt="q", completions=("a", "b"), scores=(0.0, 2.0), judge_scores=(1.0, -1.0))
    found = best_of_n_figures([flat, other], num_resamples=50)
    assert [row["n"] for row in found["curve"]] == [1, 2]  # the least N
    assert found["curve"][1]["score"] == pytest.approx((1 + 2) / 2)
    assert found["curve"][1]["judge"] == pytest.approx((3 - 1) / 2)  # ties: any of the three
    assert found["distinct_fraction"] == pytest.approx((2 / 3 + 1) / 2)
    assert flat.best == 0 and other.best == 1


def test_one_prompt_has_no_intervals_and_shows_nothing() -> None:
    found = best_of_n_figures(samples(1, 8, 0, judge=lambda s: s), num_resamples=50)
    assert found["curve"][-1]["score_low"] is None and found["curve"][-1]["judge_gain_high"] is None
    assert not found["judge_turn"]["gain_shown"] and found["judge_turn"]["gain_low"] is None
    twice = samples(1, 8, 0) * 2  # the same prompt again is no second prompt
    assert best_of_n_figures(twice, num_resamples=50)["curve"][-1]["score_low"] is None


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        best_of_n_figures([])
