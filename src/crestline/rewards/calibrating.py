"""The scale of a reward model, fitted on rankings: a typical answer's score, and the temperature.

Owns the order of it: first every member on one scale, then what they say together. Knows nothing of training and files.
Letters: N completions of the rankings in their order, then of the typical answers; M members.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crestline.models.calibration import Calibration
from crestline.models.reward import RewardEnsemble, RewardModel
from crestline.rewards.pairs import Pairs, pairs_of
from crestline.rewards.trust import temperature_of
from crestline.types import BadInput, PromptText, Ranking

Array = NDArray[np.float64]
Answers = Sequence[tuple[PromptText, str]]
"""Prompts with completions."""


def calibrate(
    model: RewardModel | RewardEnsemble, rankings: Sequence[Ranking], *, typical: Answers = ()
) -> Array:
    """Fit the calibration of a model and of its members, in place; return its scores [N] of the rankings' completions.

    rankings: held out of training. typical: what the reference answers; its mean score is where calibrated scores are
    0.5. Empty: the rankings' completions. Members are divided by their own temperature and their own typical score is
    their 0, so that the least of them, and their variance, mean something.
    Raises BadInput if people preferred nothing, or a score is not finite.
    """
    pairs = pairs_of(rankings)
    if not len(pairs):
        raise BadInput(
            "the rankings hold no two completions of which one is better: no scale in them"
        )
    answers = [(r.prompt, text) for r in rankings for text in r.completions]
    num = len(answers)
    scores_N = _calibrated(model, pairs, [*answers, *typical], num)
    return scores_N[:num]


def _calibrated(
    model: RewardModel | RewardEnsemble, pairs: Pairs, answers: Answers, num: int
) -> Array:
    """Calibrate, and return the scores of all answers, of which the first `num` are the rankings'."""
    if isinstance(model, RewardEnsemble):
        columns = []
        for member in model.members:
            scores_N = _calibrated(member, pairs, answers, num)
            columns.append(member.calibration.log_odds(scores_N))
        scores_N = model.aggregated(np.stack(columns, axis=1))
    else:
        rows = model.rows([prompt for prompt, _ in answers], [text for _, text in answers])
        raw_NM = model.raw_of_rows(rows)
        if not np.isfinite(raw_NM).all():
            raise BadInput(
                "the reward model gives scores that are no numbers: its weights are damaged"
            )
        if model.num_heads > 1:
            heads = [fitted(raw_N, pairs, num) for raw_N in raw_NM.T]
            temperatures_M = [head.temperature for head in heads]
            model.put_on_one_scale([head.mean for head in heads], temperatures_M)
            raw_NM = raw_NM / np.asarray(temperatures_M)
        scores_N = model.aggregated(raw_NM - model.head_means_M)
    model.calibration = fitted(scores_N, pairs, num)
    return scores_N


def fitted(scores_N: Array, pairs: Pairs, num: int) -> Calibration:
    """The calibration of one column of scores, of which the first `num` are the rankings'."""
    typical_N = scores_N[num:] if len(scores_N) > num else scores_N
    return Calibration(float(typical_N.mean()), temperature_of(pairs, scores_N[:num]))
