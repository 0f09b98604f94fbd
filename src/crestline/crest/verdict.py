"""From counted duels to a verdict: what to ship, how sure, and why, in words.

Owns the rule. Knows nothing of how duels are scheduled or where answers come from.

The rule, chosen by simulation (bench/crest_sim.py) for the smallest regret that keeps healthy runs
quiet:

1. Nothing beats the reference unless two things hold: the duels asked where earlier answers put
   the peak win more than an even coin would (one-sided test), and the fit puts the shipped
   checkpoint above the reference with probability 0.9. Otherwise ship update 0.
2. The fit's best checkpoint is the argmax of the posterior mean. If the last checkpoint is worse
   than it with probability ≥ `confidence`, the run has `peaked`: ship the best.
3. Otherwise it is `still_rising`. The last ships if a decline is less likely than `SHIP_BEST`, or
   if the best lies within the last `NEAR_END` of the distance. Else the decline is likely but not
   established: the best ships, and the reason says so. Shipping the last there loses a fifth to
   four fifths of the gain on slow declines; shipping the best costs a healthy run that has
   levelled off a few hundredths at most.

There is no one-standard-error rule towards smaller distances: the argmax of the fit ships.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from crestline.crest.duels import Tally
from crestline.formulas.curves import StackedFit
from crestline.formulas.intervals import normal_quantile, wilson
from crestline.types import CurvePoint, Verdict, VerdictKind

INTERVAL_CONFIDENCE = 0.9
"""Confidence of every interval in a verdict, as `types.Verdict` states."""

SHIP_BEST = 0.55
"""Probability of a decline from which the best of the fit ships rather than the last."""

NEAR_END = 0.1
"""Part of the distance travelled within which the best is no better than the last in practice."""

BEATS = 0.9
"""Posterior probability that what ships beats the reference, needed besides the test."""

NUM_CURVES = 2000
"""Curves drawn from the posterior."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the fit says, before words.

    best: index of the fit's best checkpoint. ship: index of the one to ship if any ships.
    decline: probability that the last checkpoint is worse than the best. beats: probability that
    `ship` beats the reference. z: standard score of the duels asked near the supposed peak against
    an even coin.
    """

    best: int
    ship: int
    decline: float
    beats: float
    z: float


def judge(tally: Tally, fit: StackedFit, curves: Array, confidence: float) -> Judgement:
    """Weigh the evidence. curves: (draws, S) log odds drawn from the fit.

    The place of every duel in the phases focus and confirm was chosen by earlier answers only. If
    no checkpoint beats the reference, the sum of (outcome − 1/2) over them is therefore a
    supermartingale whose steps have variance at most 1/4, however the places were chosen: z is an
    honest one-sided test of "nothing beats the reference", with no correction for having looked.
    Source: Lai & Wei (1982), Ann. Stat. 10 (adaptive designs; martingale central limit theorem).
    """
    best = int(fit.mean().argmax())
    last = len(tally.updates_S) - 1
    decline = float((curves[:, last] < curves[:, best]).mean())
    near_end = tally.distances_S[best] >= (1 - NEAR_END) * tally.distances_S[last]
    likely = decline >= confidence or (decline >= SHIP_BEST and not near_end)
    ship = best if likely else last
    z = (tally.chosen_wins - tally.chosen_count / 2) / (0.5 * sqrt(max(tally.chosen_count, 1)))
    beats = float((curves[:, ship] > 0).mean())
    return Judgement(best=best, ship=ship, decline=decline, beats=beats, z=z)


def decide(
    tally: Tally, *, confidence: float, min_duels: int, answered_by: str, seed: int
) -> Verdict:
    """The verdict on the duels counted so far.

    confidence: in (1/2, 1), of `peaked` and of beating the reference. min_duels: ranked duels near
    the supposed peak below which nothing is said. answered_by: who answered, repeated in the
    verdict. seed: of the draws from the posterior; the same tally and seed give the same verdict.
    In the verdict `win_rate` is that of the confirmation duels, if they were asked about what
    ships, with Wilson's 90 % interval; otherwise it is the fit's.
    """
    if tally.chosen_count < min_duels:
        return _not_measured(tally, min_duels, answered_by)
    fit = tally.fit()
    curves = fit.sample(NUM_CURVES, np.random.default_rng([seed, 1]))
    judgement = judge(tally, fit, curves, confidence)
    curve = curve_points(tally, curves)
    beats = judgement.z >= normal_quantile(confidence) and judgement.beats >= BEATS
    if not beats:
        return _nothing(tally, judgement, curve, answered_by)
    last = len(tally.updates_S) - 1
    peaked = judgement.decline >= confidence and judgement.best != last
    kind: VerdictKind = "peaked" if peaked else "still_rising"
    shipped = curve[judgement.ship + 1]
    confirmed = tally.confirm_update == shipped.update and tally.confirm_count >= min_duels
    win_rate, interval = shipped.win_rate, (shipped.low, shipped.high)
    if confirmed:
        win_rate = tally.confirm_wins / tally.confirm_count
        interval = wilson(tally.confirm_wins, tally.confirm_count, INTERVAL_CONFIDENCE)
    crests = curves.argmax(axis=1)
    tail = (1 - INTERVAL_CONFIDENCE) / 2
    ends = np.quantile(crests, [tail, 1 - tail], method="nearest")
    evidence = (
        f"{tally.confirm_count} confirmation duels" if confirmed else "duels by the fitted curve"
    )
    first_sentence = (
        f"{_capital(answered_by)} preferred checkpoint-{shipped.update} to the reference in "
        f"{_percent(win_rate)} % of {evidence} "
        f"(90 % interval {_percent(interval[0])}–{_percent(interval[1])} %)"
    )
    return Verdict(
        kind=kind,
        update=shipped.update,
        interval=(tally.updates_S[int(ends[0])], tally.updates_S[int(ends[1])]),
        distance=shipped.distance,
        win_rate=win_rate,
        win_rate_interval=interval,
        num_labels=tally.num_labels,
        answered_by=answered_by,
        reason=f"{first_sentence}; {_turn(judgement, kind, curve)}",
        curve=curve,
    )


def curve_points(tally: Tally, curves: Array) -> tuple[CurvePoint, ...]:
    """The reference (update 0, which ties with itself) and every checkpoint, with 90 % intervals.

    curves: (draws, S) log odds drawn from the fit.
    """
    tail = (1 - INTERVAL_CONFIDENCE) / 2
    rates = expit(curves)
    means = rates.mean(axis=0)
    low, high = np.quantile(rates, [tail, 1 - tail], axis=0)
    reference = CurvePoint(
        update=0, distance=0.0, win_rate=0.5, low=0.5, high=0.5, num_duels=0, num_wins=0.0
    )
    points = [
        CurvePoint(
            update=update,
            distance=float(tally.distances_S[i]),
            win_rate=float(means[i]),
            low=float(low[i]),
            high=float(high[i]),
            num_duels=int(tally.counts_S[i]),
            num_wins=float(tally.wins_S[i]),
        )
        for i, update in enumerate(tally.updates_S)
    ]
    return (reference, *points)


def _turn(judgement: Judgement, kind: VerdictKind, curve: tuple[CurvePoint, ...]) -> str:
    """The second half of the reason: has the curve turned?"""
    last, best = curve[-1], curve[judgement.best + 1]
    if kind == "peaked":
        falling = next(
            (p for p in curve[judgement.best + 2 :] if p.high < best.win_rate), curve[-1]
        )
        where = f"from checkpoint-{falling.update} on" if falling is not last else "after that"
        return (
            f"{where} they preferred it less, and checkpoint-{last.update} wins "
            f"{_percent(last.win_rate)} %."
        )
    if judgement.ship + 1 == len(curve) - 1:
        return "that is the last checkpoint, and no decline is established: training can go on."
    return (
        f"the fitted curve peaks there, though the decline to {_percent(last.win_rate)} % at "
        f"checkpoint-{last.update} is likely ({_percent(judgement.decline)} %) and not established."
    )


def _nothing(
    tally: Tally, judgement: Judgement, curve: tuple[CurvePoint, ...], answered_by: str
) -> Verdict:
    best = curve[judgement.best + 1]
    rate = tally.chosen_wins / tally.chosen_count
    return Verdict(
        kind="nothing_beats_reference",
        update=0,
        interval=None,
        distance=0.0,
        win_rate=None,
        win_rate_interval=None,
        num_labels=tally.num_labels,
        answered_by=answered_by,
        reason=(
            f"{_capital(answered_by)} preferred the most promising checkpoints to the reference in "
            f"{_percent(rate)} % of {tally.chosen_count} duels, which does not establish a gain; "
            f"the best by the fitted curve, checkpoint-{best.update}, wins "
            f"{_percent(best.win_rate)} % (90 % interval {_percent(best.low)}–"
            f"{_percent(best.high)} %)."
        ),
        curve=curve,
    )


def _not_measured(tally: Tally, min_duels: int, answered_by: str) -> Verdict:
    return Verdict(
        kind="not_measured",
        update=None,
        interval=None,
        distance=None,
        win_rate=None,
        win_rate_interval=None,
        num_labels=tally.num_labels,
        answered_by=answered_by,
        reason=(
            f"{tally.num_labels} duels were answered, {tally.chosen_count} of them ranked duels "
            f"near the supposed peak; at least {min_duels} such are needed."
        ),
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f}"


def _capital(text: str) -> str:
    if not text:
        return "Whoever answered"
    return f"The {text}" if text in ("function", "stand-in") else text[:1].upper() + text[1:]
