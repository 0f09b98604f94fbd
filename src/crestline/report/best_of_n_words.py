"""What best-of-n found, in words: the headline, the short table for the terminal, what was not checked.

Owns sentences. Knows nothing of files, pictures and HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, log10
from typing import Any

from crestline.report.words import number, percent

Figures = Mapping[str, Any]
FEWEST_PROMPTS = 20
"""Below so many prompts intervals that resample prompts are too narrow."""
LEVEL = 1e-12
"""A deviation of so small a share of the score is rounding."""


def headline(figures: Figures) -> str:
    """What was found, in a sentence: of the judge, where one was asked."""
    found, most = figures["judge_turn"], figures["num_generations"]
    if is_level(figures, "score"):
        return "The score tells none of a prompt’s answers from another: choosing changes nothing."
    if found and is_level(figures, "judge"):
        return "The judge tells none of a prompt’s answers from another."
    if not found:
        if not figures["score_turn"]["gain_shown"]:
            return f"The best of {most:,} is not shown to score above any one answer."
        return (
            f"The best of {most:,} scores {deviations(figures, 'score')} above one answer; "
            "nobody else was asked."
        )
    peak = found["peak_n"]
    if found["fall_shown"]:
        if peak == 1:
            return "Choosing makes the answers worse in the judge’s eyes."
        rose = "peaks" if found["gain_shown"] else "is highest"
        return f"The judge’s score {rose} at the best of {peak:,} and falls from there."
    if not found["gain_shown"]:
        return "Choosing is not shown to please the judge."
    if peak == most:
        return f"The judge still gains at the best of {most:,}."
    return f"The judge gains up to the best of {peak:,}; a fall after it is not shown."


def reason(figures: Figures) -> str:
    """What stands behind the headline, in a sentence or two."""
    most, found = figures["num_generations"], figures["judge_turn"]
    score = (
        f"The score that chooses gains {number(figures['curve'][-1]['score_gain'])} at the best of {most:,}, "
        f"{deviations(figures, 'score')} of one answer."
    )
    if is_level(figures, "score"):
        score = (
            "The score that chooses is the same for all answers to a prompt, so nothing is chosen."
        )
    if not found or is_level(figures, "score"):
        return score
    if is_level(figures, "judge"):
        return (
            f"{score} The judge gave all answers to a prompt the same score, whichever is chosen."
        )
    where = f"The judge’s score gains {number(found['gain'])} at the best of {found['peak_n']:,}"
    if found["peak_n"] == 1:
        where = "The judge’s score is highest without any choice"
    if found["peak_n"] == most:
        return f"{score} {where}."
    shown = "" if found["fall_shown"] else ", which chance could explain"
    return f"{score} {where} and loses {number(found['fall'])} from there to the best of {most:,}{shown}."


def is_level(figures: Figures, name: str) -> bool:
    """Whether all answers to a prompt have the same score, but for rounding."""
    size = max(abs(row[name]) for row in figures["curve"])
    size = max(size, 1e-3)  # means of scores that cancel are rounding too
    return bool(figures["standard_deviation"][name] <= LEVEL * size)


def deviations(figures: Figures, name: str) -> str:
    """The last gain in standard deviations of one answer's score, in words."""
    unit = figures["standard_deviation"][name]
    gain = figures["curve"][-1][f"{name}_gain"]
    return f"{number(gain / unit if unit else 0.0)} standard deviations"


def cells_of(figures: Figures, name: str) -> list[tuple[str, str]]:
    """Mean and interval of a score for each n, with as many decimals as the narrowest interval needs."""
    rows = figures["curve"]
    ends = [(row[f"{name}_low"], row[f"{name}_high"]) for row in rows]
    widths = [h - low for low, h in ends if low is not None and h - low > LEVEL * abs(h)]
    places = min(max(1 - floor(log10(min(widths))), 0), 6) if widths else 3

    def told(value: float) -> str:
        return f"{value:,.{places}f}".replace("-", "−")

    return [
        (told(row[name]), "–" if low is None else f"{told(low)} to {told(high)}")
        for row, (low, high) in zip(rows, ends, strict=True)
    ]


def short_table(figures: Figures) -> list[str]:
    """The curve as a few lines for the terminal."""
    judged = figures["judge_turn"] is not None
    head = ["n", "KL up to", "score", "95 %"] + (["judge", "95 %"] if judged else [])
    names = ("score", "judge") if judged else ("score",)
    columns = [cells_of(figures, name) for name in names]
    rows = [head]
    for row, *cells in zip(figures["curve"], *columns, strict=True):
        told = [f"{row['n']:,}", f"{row['kl_bound']:.2f}"]
        rows.append([*told, *(text for cell in cells for text in cell)])
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return [*(line.rstrip() for line in lines), headline(figures)]


def not_checked(figures: Figures) -> list[str]:
    """What the figures say nothing of."""
    missing = []
    if figures["judge_turn"] is None:
        missing.append(
            "Whether anybody else likes what is chosen: every score grows when it chooses itself. A second "
            "opinion (--judge) shows where that ends."
        )
    else:
        missing.append(
            "Whether people agree with the judge: it is one more score, and what it shares with the first stays hidden."
        )
    if figures["num_prompts"] < FEWEST_PROMPTS:
        missing.append(
            f"Other prompts: with {figures['num_prompts']:,} the intervals are too narrow to be believed."
        )
    if figures["distinct_fraction"] < 0.9:
        missing.append(
            f"The KL itself: only {percent(figures['distinct_fraction'])} of a prompt’s answers differ, and where "
            "answers repeat the policy moves less than the bound says."
        )
    missing += [
        "Other temperatures and lengths: a best of n is the best of what this way of sampling brings.",
        f"n beyond {figures['num_generations']:,}: the estimate ends where the samples do.",
    ]
    return missing
