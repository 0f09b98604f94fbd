"""What an evaluation of a reward model says, in words: the headline, the short table, what was not checked.

Owns sentences and how numbers of this kind are read. Knows nothing of files, pictures and HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crestline.report.words import number, percent

Figures = Mapping[str, Any]
Lines = list[tuple[str, str]]


def points(difference: float | None) -> str:
    """A difference of two shares, in percentage points.

    >>> points(0.0312), points(-0.2), points(None)
    ('+3.1 points', '−20.0 points', '–')
    """
    return "–" if difference is None else f"{signed(100 * difference, 1)} points"


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign.

    >>> signed(0.1234), signed(-2.0, 1)
    ('+0.123', '−2.0')
    """
    return f"{value:+.{digits}f}".replace("-", "−")


def exact(fraction: float | None) -> str:
    """A fraction in percent with one decimal.

    >>> exact(0.7123)
    '71.2\\xa0%'
    """
    return "–" if fraction is None else f"{100 * fraction:.1f}\u00a0%"


def between(figures: Figures, name: str) -> str:
    """The two ends of a share's interval in percent, such as "68.0–74.3 %"."""
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    if low is None or high is None:
        return "–"
    return f"{100 * low:.1f}–{exact(high)}"


def counted(num: int, thing: str) -> str:
    """A number with its noun.

    >>> counted(1, "ranking"), counted(1200, "ranking")
    ('1 ranking', '1,200 rankings')
    """
    return f"{num:,} {thing}" + ("" if num == 1 else "s")


def headline(figures: Figures) -> str:
    """The evaluation in a sentence."""
    accuracy = f"Right about {percent(figures['accuracy'])} of the pairs"
    if figures["accuracy_low"] <= 0.5:
        return f"{accuracy}: not shown to be better than a coin."
    gain, low, high = (figures[f"accuracy_over_longer_wins{end}"] for end in ("", "_low", "_high"))
    if low is None:
        return f"{accuracy}; too few prompts to hold it against “the longer wins”."
    if low > 0:
        return f"{accuracy}, {100 * gain:.0f} points more than “the longer wins”."
    if high < 0:
        return f"{accuracy}: “the longer wins” is right more often."
    return f"{accuracy}; not shown to beat “the longer wins”."


def calibration_verdict(figures: Figures) -> str:
    """Whether the probabilities can be believed, in a sentence or two."""
    found = figures["calibration"]
    if not found:
        return "Too few rankings of different prompts to say whether its probabilities can be believed."
    floor = f"{found['ece_floor_low']:.3f}–{found['ece_floor_high']:.3f}"
    error = (
        f"calibration error {found['ece']:.3f}, where perfect probabilities would show about "
        f"{found['ece_floor']:.3f} on as many rankings (95\u00a0% of them {floor})"
    )
    if found["ece"] <= found["ece_floor_high"]:
        return f"Its probabilities cannot be told from perfect ones: {error}."
    ratio = figures["temperature_refitted"] / figures["temperature"]
    if 0.9 < ratio < 1.1:
        return f"Its probabilities are off, and no other temperature would mend it: {error}."
    how = "too sure of itself" if ratio > 1 else "less sure than it could be"
    return (
        f"It is {how}: {error}. The temperature that fits these rankings is "
        f"{number(figures['temperature_refitted'])}, the model's is {number(figures['temperature'])}."
    )


def curve_verdict(figures: Figures) -> str:
    """What more rankings would buy, in a sentence."""
    curve = figures["learning_curve"]
    if not curve:
        return ""
    error = curve["error"]
    if error["refused"]:
        return f"Nothing is said of more rankings. Accuracy is {error['refused']}."
    gain, low, high = error["gain"]
    return (
        f"{error['num_more']:,} more rankings beside the {error['num_now']:,} would buy about {points(gain)} of "
        f"accuracy (95\u00a0% interval {signed(100 * low, 1)} to {signed(100 * high, 1)})."
    )


def leak_verdict(figures: Figures) -> str:
    """How many test rankings training may have seen, in a sentence; empty where nothing was looked for."""
    found = figures["leakage"]
    if not found:
        return ""
    if not found["num_leaking"]:
        return (
            f"None of the {found['num_test']:,} test rankings was found in the training rankings."
        )
    num = f"{found['num_leaking']:,} of {found['num_test']:,}"
    told = f"{num} test rankings stand, or nearly so, in the training rankings"
    if without := found["without"]:
        told += f"; on the others it is right about {exact(without['accuracy'])} ({between(without, 'accuracy')})"
    return f"{told}."


def short_table(figures: Figures) -> Lines:
    """The evaluation as a few lines for the terminal: (name, value)."""
    lines = [
        (
            "accuracy",
            f"{exact(figures['accuracy'])} ({between(figures, 'accuracy')}) of {figures['num_pairs']:,} pairs in "
            f"{figures['num_heldout_rankings']:,} rankings; {figures['interval']}",
        ),
        (
            "longer wins",
            f"{exact(figures['longer_wins_accuracy'])} ({between(figures, 'longer_wins_accuracy')})",
        ),
    ]
    for row in figures["best_of_k"]:
        if row["num_ranked"] > 2:
            hit = f"{exact(row['hit'])} ({between(row, 'hit')}) of {counted(row['num_rankings'], 'ranking')}"
            lines.append((f"best of {row['num_ranked']}", f"{hit}; chance {exact(row['chance'])}"))
    if found := figures["calibration"]:
        floor = f"{found['ece_floor_low']:.3f}–{found['ece_floor_high']:.3f}"
        lines.append(
            (
                "calibration",
                f"ECE {found['ece']:.3f}; perfect ones {found['ece_floor']:.3f} ({floor})",
            )
        )
        lines.append(
            (
                "log-loss",
                f"{found['log_loss']:.3f}; uncalibrated {found['log_loss_uncalibrated']:.3f}, "
                f"coin {found['log_loss_constant']:.3f}",
            )
        )
    lines += [
        ("length", f"{unit}: {length_told(found)}") for unit, found in figures["length"].items()
    ]
    if found := figures["ensemble"]:
        lines.append(("ensemble", ensemble_told(found)))
    if figures["num_truncated"]:
        lines.append(("too long", f"{figures['num_truncated']:,} completions lost their front"))
    for name, verdict in (("leaks", leak_verdict), ("more data", curve_verdict)):
        if told := verdict(figures):
            lines.append((name, told))
    if found := figures["rewardbench"]:
        scores = found["sections"] or found["subsets"]
        lines.append(("rewardbench", ", ".join(f"{k} {exact(v)}" for k, v in scores.items())))
    return lines


def length_told(found: Figures) -> str:
    """How far score and people follow length."""
    model, people = (found[f"{who}within_rankings"] for who in ("", "people_"))
    return (
        f"Spearman {number(found['spearman'])} over all; within rankings {number(model)}, "
        f"people {number(people)}"
    )


def ensemble_told(found: Figures) -> str:
    """How well margin and spread tell wrong from right."""
    margin, spread, both = (found[f"auroc_{name}"] for name in ("margin", "spread", "both"))
    if margin is None:
        return "never wrong here, so nothing can be said of its spread"
    return (
        f"{ensemble_verdict(found)}: AUROC of the margin {margin:.3f}, of the spread {spread:.3f}, "
        f"of both {both:.3f}"
    )


def ensemble_verdict(found: Figures) -> str:
    """Whether the spread tells wrong from right, to begin a sentence."""
    if found["auroc_spread_over_margin_low"] > 0:
        return "its spread tells wrong from right better than the margin does"
    if found["auroc_both_over_margin_low"] > 0:
        return "its spread tells something that the margin does not"
    return "its spread is not shown to tell more than the margin does"


def not_checked(figures: Figures) -> list[str]:
    """What the evaluation says nothing of."""
    missing = [
        "What happens when a policy is trained against it: held-out accuracy says little of how a score holds up "
        "under optimisation.",
        "Prompts and completions unlike those of the test rankings, and people other than those who gave them.",
        "How well people agree with one another here: no score can be right more often than they are.",
    ]
    if not figures["leakage"]:
        missing.insert(0, "Leaks: the rankings that it was trained on were not given.")
    if not figures["learning_curve"]:
        missing.append("What more rankings would buy: no learning curve was asked for.")
    if figures["interval"].endswith(("ranking", "rankings")):
        missing.append(
            "Texts that stand in several rankings: with no more than one prompt, each ranking counts as independent, "
            "which makes the intervals a little narrow."
        )
    return missing
