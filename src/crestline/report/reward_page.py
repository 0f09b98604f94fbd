"""evaluation.html: one page that shows what an evaluation of a reward model found, without any request to anywhere.

Owns the order of the sections and how they degrade. Knows nothing of how the figures were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crestline.report.rendering import environment
from crestline.report.reward_pictures import (
    SLIM,
    WIDE,
    curve_picture,
    histogram_picture,
    margin_picture,
    reliability_picture,
)
from crestline.report.reward_words import (
    between,
    calibration_verdict,
    counted,
    curve_verdict,
    ensemble_told,
    exact,
    headline,
    leak_verdict,
    not_checked,
    signed,
)
from crestline.report.words import inert, number, percent
from crestline.runs.files import read_json, write_atomic

GROUPINGS = {
    "source": "by source",
    "annotator": "by annotator",
    "stated_margin": "by how much better people said it was",
    "rank_gap": "by how many ranks lie between the two",
    "num_ranked": "by how many were ranked",
    "which_is_better": "by which of the two is longer",
}
COUNTS = (
    ("num_pairs", "pairs, no ties"),
    ("num_heldout_rankings", "test rankings"),
    ("num_skipped_rankings", "rankings skipped while reading"),
    ("num_duplicate_rankings", "of them said twice"),
    ("num_truncated", "completions that lost their front"),
    ("max_length", "tokens that it reads at most"),
    ("temperature", "temperature"),
    ("mean", "raw score of a typical answer"),
)
LONGEST_EXAMPLE = 300


def write_reward_page(evaluation: Path) -> Path:
    """Write evaluation.html beside evaluation.json and return its path; the same file gives the same bytes.

    Raises: BadInput where the file is missing or broken, or the disk refuses.
    """
    path = Path(evaluation).with_suffix(".html")
    write_atomic(path, reward_page(read_json(evaluation)))
    return path


def reward_page(figures: Mapping[str, Any]) -> str:
    """The page as text. figures: what evaluation.json holds."""
    pages = environment(
        number=number, percent=percent, exact=exact, signed=signed, between=between, inert=inert
    )
    return pages.get_template("reward.html.jinja").render(**sections(figures))


def sections(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template shows."""
    calibration, curve, leakage = (
        figures[key] for key in ("calibration", "learning_curve", "leakage")
    )
    margins = figures["accuracy_by"]["score_margin"]
    return {
        "name": inert(figures["reward_model_name_or_path"], 200),
        "figures": figures,
        "headline": headline(figures),
        "tiles": tiles(figures),
        "calibration_verdict": calibration_verdict(figures),
        "reliability": reliability_picture(calibration["bins"]) if calibration else None,
        "margins": margin_picture(margins) if len(margins) > 1 else None,
        "groups": [
            (told, figures["accuracy_by"][key])
            for key, told in GROUPINGS.items()
            if key in figures["accuracy_by"]
        ],
        "histogram": histogram_picture(figures["scores"]),
        "curve_verdict": curve_verdict(figures),
        "curves": [curve_picture(curve["error"], curve["points"], f) for f in (WIDE, SLIM)]
        if curve
        else [],
        "ensemble_told": ensemble_told(figures["ensemble"]) if figures["ensemble"] else "",
        "leak_verdict": leak_verdict(figures),
        "leaks": [
            {**leak, "test_text": inert(leak["test_text"], LONGEST_EXAMPLE)}
            for leak in leakage["examples"]
        ]
        if leakage
        else [],
        "counts": [
            (told, number(figures[key])) for key, told in COUNTS if figures[key] is not None
        ],
        "not_checked": not_checked(figures),
    }


def tiles(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, value) of the few numbers that stand first."""
    found = [
        (
            f"of the pairs right, 95\u00a0% interval {between(figures, 'accuracy')}",
            exact(figures["accuracy"]),
        ),
        ("by “the longer wins” on the same pairs", exact(figures["longer_wins_accuracy"])),
    ]
    larger = [row for row in figures["best_of_k"] if row["num_ranked"] > 2]
    if larger:
        row = max(larger, key=lambda row: row["num_rankings"])
        of = f"{row['num_ranked']} is people's best, in {counted(row['num_rankings'], 'ranking')}"
        label = f"its best of {of}; chance has {exact(row['chance'])}"
        found.append((label, exact(row["hit"])))
    if calibration := figures["calibration"]:
        label = f"calibration error; perfect probabilities show {calibration['ece_floor']:.3f}"
        found.append((label, f"{calibration['ece']:.3f}"))
    return found
