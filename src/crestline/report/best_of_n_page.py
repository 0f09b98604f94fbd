"""The page of best-of-n: curve, table, answers side by side, without any request to anywhere.

Owns the order of the page and its picture. Knows nothing of how the figures were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, log2
from pathlib import Path
from typing import Any

from crestline.report.best_of_n_words import cells_of, headline, is_level, not_checked, reason
from crestline.report.charts import Scale, band, line, padded_range, ticks, told_ticks
from crestline.report.pictures import Frame, Picture
from crestline.report.rendering import environment
from crestline.report.samples import prompt_text
from crestline.report.words import inert, number, percent
from crestline.runs.files import read_json, write_atomic

WIDE = Frame(1000, 420, 58, 30, 40, 52)
SLIM = Frame(420, 360, 48, 14, 40, 52)
LONGEST_ANSWER = 1500
SETTINGS = (
    "model_name_or_path",
    "dataset_name",
    "samples_file",
    "reward_model_name_or_path",
    "reward_funcs",
    "remote_rm_url",
    "judge",
)
"""Settings that the page shows, where they were given."""
SAMPLING = ("max_completion_length", "temperature")
"""Those that say how answers were sampled, where they were."""


def write_best_of_n_page(figures: Path) -> Path:
    """Write the page beside the .json of best-of-n and return its path; the same file gives the same bytes.

    Raises: BadInput where the file is missing or broken, or the disk refuses.
    """
    path = Path(figures).with_suffix(".html")
    write_atomic(path, best_of_n_page(read_json(figures)))
    return path


def best_of_n_page(figures: Mapping[str, Any]) -> str:
    """The page as text. figures: what the .json holds."""
    judged = figures["judge_turn"] is not None
    pages = environment(number=number, inert=inert)
    return pages.get_template("best_of_n.html.jinja").render(
        headline=headline(figures),
        reason=reason(figures),
        figures=figures,
        names=[("score", "the score that chooses")]
        + ([("judge", "the judge’s score")] if judged else []),
        pictures=[curve_picture(figures, frame) for frame in (WIDE, SLIM)],
        rows=table(figures),
        tiles=tiles(figures),
        examples=[example(found) for found in figures["examples"]],
        settings=[(key, inert(value, 300)) for key, value in read_from(figures["settings"])],
        not_checked=not_checked(figures),
    )


def read_from(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The settings that are worth showing."""
    keys = SETTINGS if settings["samples_file"] else (*SETTINGS, *SAMPLING)
    return [(key, settings[key]) for key in keys if settings[key]]


def curve_picture(figures: Mapping[str, Any], frame: Frame) -> Picture:
    """Gains over one answer against n, each in standard deviations of one answer's score, with 95 % bands."""
    curve: Sequence[Mapping[str, Any]] = figures["curve"]
    units = {  # of a level score all gains are rounding, and where nothing is chosen of every score
        name: inf if is_level(figures, "score") or is_level(figures, name) else unit
        for name, unit in figures["standard_deviation"].items()
    }
    gains = {
        name: [
            [row[f"{name}_gain{end}"] for row in curve]
            if curve[0][f"{name}_gain_low"] is not None
            else [row[f"{name}_gain"] for row in curve]
            for end in ("", "_low", "_high")
        ]
        for name in units
    }
    scaled = {n: [[v / units[n] for v in column] for column in gains[n]] for n in units}
    low, high = padded_range([0.0, *(v for n in scaled for column in scaled[n] for v in column)])
    x = Scale(0, log2(curve[-1]["n"]), frame.left, frame.x_end)
    y = Scale(low, high, frame.y_end, frame.top)
    at = [x(log2(row["n"])) for row in curve]
    wide = frame is WIDE
    step = 1 if wide or len(curve) <= 7 else 2
    found = None if any(is_level(figures, name) for name in units) else figures["judge_turn"]
    peak = at[[row["n"] for row in curve].index(found["peak_n"])] if found else None
    return {
        "frame": frame.as_dict(),
        "wide": wide,
        "x_ticks": [(a, number(r["n"])) for a, r in list(zip(at, curve, strict=True))[::step]],
        "y_ticks": told_ticks(y, ticks(low, high, 6)),
        "zero": y(0),
        "lines": [
            {
                "kind": "proxy" if name == "score" else "preference",
                "line": line([(a, y(v)) for a, v in zip(at, columns[0], strict=True)]),
                "band": band(
                    [(a, y(v)) for a, v in zip(at, columns[2], strict=True)],
                    [(a, y(v)) for a, v in zip(at, columns[1], strict=True)],
                ),
            }
            for name, columns in scaled.items()
        ],
        "peak": peak,
        "peak_label": f"judge’s highest: n = {found['peak_n']:,}" if found else "",
        "anchor": "start" if peak is not None and peak < frame.width / 2 else "end",
    }


def table(figures: Mapping[str, Any]) -> list[list[str]]:
    """A row for each n: n, KL, distance, then mean and interval of each score."""
    columns = [cells_of(figures, name) for name in figures["standard_deviation"]]
    return [
        [
            f"{row['n']:,}",
            f"{row['kl_bound']:.3f}",
            f"{row['distance_bound']:.2f}",
            *(text for cell in cells for text in cell),
        ]
        for row, *cells in zip(figures["curve"], *columns, strict=True)
    ]


def tiles(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, value) of the few numbers that stand first."""
    last = figures["curve"][-1]
    return [
        ("prompts", f"{figures['num_prompts']:,}"),
        ("answers to choose from, for each", f"{figures['num_generations']:,}"),
        ("nats at most between policy and choice", f"{last['kl_bound']:.2f}"),
        ("of a prompt’s answers differ", percent(figures["distinct_fraction"])),
    ]


def example(found: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt with two of its answers, ready to be shown."""
    shown: dict[str, Any] = {"prompt": prompt_text(found["prompt"])}
    for name in ("first", "best"):
        answer = found[name]
        judged = answer["judge"]
        shown[name] = {
            "text": inert(answer["completion"], LONGEST_ANSWER),
            "told": f"score {number(answer['score'])}"
            + ("" if judged is None else f", judge {number(judged)}"),
        }
    return shown
