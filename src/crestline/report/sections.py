"""What each section of the page says, as plain values for the templates.

Owns numbers into words and the choice of what is shown. Knows nothing of HTML and of files.
"""

from __future__ import annotations

from math import ceil
from typing import Any

from crestline.report.pictures import (
    NARROW,
    WIDE,
    Picture,
    crest_picture,
    gold_picture,
    small_picture,
)
from crestline.report.reading import CheckpointRow, Run, finite, whole
from crestline.report.samples import Answers
from crestline.report.words import duration, inert, number, percent, percent_range

CURVES = (
    ("reward", "Reward", "mean over completions, what training maximises"),
    ("objective/scores", "Score while training", "mean calibrated score, 0 to 1"),
    ("kl", "KL from the start", "nats, on the training completions"),
    ("entropy", "Entropy", "nats per token: how many ways the policy still sees"),
    ("completions/mean_length", "Length", "tokens per completion"),
    ("grad_norm", "Gradient norm", "before clipping"),
)
SIGNAL_CURVES = (
    ("distinct_2", "Different word pairs", "share of all pairs, held-out prompts"),
    ("end_fraction", "Ended by itself", "share of held-out completions"),
)
REWARD_FACTS = (
    ("longer_wins_accuracy", "accuracy of “the longer is better”", percent),
    ("num_pairs", "held-out pairs", number),
    ("num_train_rankings", "rankings trained on", number),
    ("num_heldout_rankings", "rankings held out", number),
    ("num_truncated", "completions cut to fit", number),
    ("temperature", "calibration: temperature", number),
    ("mean", "calibration: mean raw score", number),
)


def tiles(run: Run) -> list[dict[str, str]]:
    """The few numbers that stand beside the verdict."""
    verdict = run.verdict
    if verdict is None:
        return []
    found = []
    if verdict.win_rate is not None:
        ends = verdict.win_rate_interval
        interval = f", 90\u00a0% interval {percent_range(ends)}" if ends else ""
        found.append(
            {
                "value": percent(verdict.win_rate),
                "label": f"preferred over the start{interval}",
            }
        )
    if verdict.interval:
        low, high = verdict.interval
        found.append({"value": f"{low}–{high}", "label": "updates hold the crest with 90\u00a0%"})
    if verdict.distance is not None:
        found.append(
            {"value": number(verdict.distance), "label": "distance from the start, √nats of KL"}
        )
    found.append({"value": number(verdict.num_labels), "label": "duels asked for this verdict"})
    return found


def pictures(run: Run) -> list[dict[str, Any]]:
    """The crest over updates and over distance, each for wide and for narrow screens."""
    found = []
    for axis, name in (("update", "by update"), ("distance", "by distance")):
        drawn = [crest_picture(run, axis, frame) for frame in (WIDE, NARROW)]
        variants = [picture for picture in drawn if picture]
        if variants:
            found.append({"axis": axis, "name": name, "variants": variants, "alt": _told(run)})
    return found


def _told(run: Run) -> str:
    """What the picture shows, in words."""
    proxies = [row.proxy for row in run.checkpoints if row.proxy is not None]
    rates = [(row.win_rate, row) for row in run.checkpoints if row.win_rate is not None]
    told = []
    if proxies:
        told.append(
            f"The mean of {run.rewarded.told} goes from {percent(proxies[0])} to "
            f"{percent(proxies[-1])}."
        )
    if rates:
        best = max(rates, key=lambda pair: pair[0])
        told.append(
            f"The fitted win rate against the start is highest at update {best[1].update} with "
            f"{percent(best[0])} and ends at {percent(rates[-1][0])}."
        )
    return " ".join(told)


def gold(run: Run) -> dict[str, Any] | None:
    """Gold after the verdict, and what it says of what was shipped."""
    picture = gold_picture(run.gold, run.verdict)
    if picture is None:
        return None
    best, last = max(run.gold, key=lambda row: row.gold), run.gold[-1]
    shipped_update = run.verdict.update if run.verdict else None
    shipped = next((row for row in run.gold if row.update == shipped_update), None)
    told = f"Gold is highest at update {best.update} ({number(best.gold)})"
    if shipped is not None:
        told += f", {number(shipped.gold)} at the shipped update {shipped.update}"
    told += f" and {number(last.gold)} at the last update {last.update}."
    deviation = run.gold_standard_deviation
    if deviation is not None:
        told += f" One standard deviation of gold at the start is {number(deviation)}."
    return {"picture": picture, "told": told}


def columns(run: Run, answers: Answers) -> list[dict[str, Any]]:
    """Start, what ships and the end, each with its answers."""
    if not answers.rows:
        return []
    updates = list(answers.rows)
    verdict = run.verdict
    shipped = verdict.update if verdict else None
    names = {updates[0]: "Start", updates[-1]: "End" if len(updates) > 1 else "Start"}
    if updates[0] != 0:
        names[updates[0]] = "First kept checkpoint"
    if shipped in answers.rows and verdict is not None and shipped is not None:
        crest = "The crest" if verdict.kind == "peaked" else "Shipped"
        old = names.get(shipped)
        names[shipped] = f"{old}, shipped" if old else crest
    rows = {row.update: row for row in run.checkpoints}
    return [
        {
            "update": update,
            "name": names[update],
            "shipped": update == shipped,
            "row": rows.get(update),
            "answers": answers.rows[update],
        }
        for update in sorted(names)
    ]


def reader_data(run: Run, answers: Answers) -> dict[str, Any]:
    """What the slider needs, as JSON: every checkpoint's numbers in words, and its answers."""
    rows = run.checkpoints or tuple(_bare(update) for update in answers.rows)
    shipped = run.verdict.update if run.verdict else None
    updates = [row.update for row in rows]
    return {
        "start": updates.index(shipped) if shipped in updates else max(len(updates) - 1, 0),
        "checkpoints": [
            {
                "update": row.update,
                "shipped": row.update == shipped,
                "distance": number(row.distance),
                "proxy": row.proxy,
                "proxy_told": percent(row.proxy),
                "win_rate": row.win_rate,
                "win_rate_told": percent(row.win_rate)
                + (
                    f" ({percent_range((row.low, row.high))})"
                    if row.low is not None and row.high is not None
                    else ""
                ),
                "num_duels": row.num_duels,
            }
            for row in rows
        ],
        "answers": [answers.rows.get(update) for update in updates],
    }


def _bare(update: int) -> CheckpointRow:
    return CheckpointRow(
        update=update,
        distance=None,
        proxy=None,
        proxy_standard_error=None,
        win_rate=None,
        low=None,
        high=None,
        num_duels=0,
        num_wins=0.0,
        signals={},
    )


def curves(run: Run) -> list[Picture]:
    """Small pictures of training, and of what the checkpoints' texts look like."""
    shipped = run.verdict.update if run.verdict else None
    found = []
    for key, title, tells in CURVES:
        rows = [(row.get("update"), finite(row.get(key))) for row in run.metrics]
        points = [(float(at), y) for at, y in rows if at is not None and y is not None]
        found.append(small_picture(points, title=title, tells=tells, shipped=shipped))
    for key, title, tells in SIGNAL_CURVES:
        signals = [
            (float(row.update), row.signals[key]) for row in run.checkpoints if key in row.signals
        ]
        found.append(small_picture(signals, title=title, tells=tells, shipped=shipped))
    return [picture for picture in found if picture]


def reward_quality(run: Run) -> dict[str, Any]:
    """The reward model's accuracy with its interval, and what else evaluation.json says."""
    low, high = (finite(run.reward.get(f"accuracy_{end}")) for end in ("low", "high"))
    return {
        "accuracy": finite(run.reward.get("accuracy")),
        "range": percent_range((low, high)) if low is not None and high is not None else "",
        "facts": [
            (label, shown(value))
            for key, label, shown in REWARD_FACTS
            if (value := finite(run.reward.get(key))) is not None
        ],
    }


def completions_trained_on(run: Run) -> int:
    """How many completions were sampled for training; 0 where it isn't known. Reused ones count once."""
    algorithm = run.rl_config.get("algorithm")
    settings = algorithm if isinstance(algorithm, dict) else {}
    updates_per_batch = 1
    for key in ("num_iterations", "num_mini_batches"):
        updates_per_batch *= whole(settings.get(key)) or 1
    each = [whole(run.rl_config.get(key)) or 0 for key in ("num_prompts", "num_generations")]
    return ceil(len(run.metrics) / updates_per_batch) * each[0] * each[1]


def cost(run: Run) -> dict[str, Any]:
    """Seconds per stage, memory, labels and completions, as far as they are known."""
    stages = run.record.get("stages")
    rows = []
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        if isinstance(stage, dict) and name != "report":  # it is not over while it writes this
            memory = finite(stage.get("peak_memory_mb"))
            rows.append((inert(name), inert(stage.get("state", "–")), stage.get("seconds"), memory))
    seconds = [known for row in rows if (known := finite(row[2])) is not None]
    facts = []
    if run.labels.num_rankings is not None:
        by = f", from {run.labels.rankings_answered_by}" if run.labels.rankings_answered_by else ""
        use = " for the reward model" if run.rewarded.may_be_learned else ""
        facts.append((number(run.labels.num_rankings), inert(f"rankings{use}{by}")))
    if run.labels.num_duels is not None:
        unranked = run.labels.num_unranked
        more = f", {unranked} of them not ranked" if unranked else ""
        facts.append((number(run.labels.num_duels), f"duels at checkpoints{more}"))
    if num_completions := completions_trained_on(run):
        facts.append((number(num_completions), "completions trained on"))
    memory = finite(run.record.get("peak_memory_mb"))
    if memory is not None:
        facts.append((f"{number(memory)} MB", "of memory at most"))
    return {
        "stages": [
            (name, state, duration(finite(value)), peak) for name, state, value, peak in rows
        ],
        "total": duration(sum(seconds)) if seconds else "",
        "has_memory": any(row[3] is not None for row in rows),
        "facts": facts,
    }
