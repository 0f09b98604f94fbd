"""Reading a run folder for the page: what is there as records, what is not as plain sentences.

Owns which files the report looks at. Writes nothing, and never fails because an optional file is
missing or broken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from crestline.report.rewarded import Rewarded, rewarded
from crestline.runs.files import read_json, read_jsonl
from crestline.runs.folder import RunFolder
from crestline.runs.tables import read_table
from crestline.types import BadInput, CurvePoint, Verdict

STAGES = ("pretrain", "sft", "reward", "rl")
SIGNALS = ("mean_length", "entropy", "distinct_2", "end_fraction")

Table = dict[str, list[Any]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRow:
    """All that is known of one kept checkpoint; None where it was not measured.

    win_rate, low, high: the fitted curve with its 90 % band. num_wins of num_duels: raw answers.
    """

    update: int
    distance: float | None
    proxy: float | None
    proxy_standard_error: float | None
    win_rate: float | None
    low: float | None
    high: float | None
    num_duels: int
    num_wins: float
    signals: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldRow:
    """What the simulated people truly say of one checkpoint: mean and its standard error."""

    update: int
    gold: float
    standard_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What people were asked: rankings for the reward model, duels at checkpoints."""

    num_rankings: int | None
    rankings_answered_by: str
    num_duels: int | None
    num_unranked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run folder as the page needs it.

    answer_prompt: a prompt that people were asked about, text or chat messages.
    notes: for each part that is missing or broken, one plain sentence.
    """

    name: str
    rl: RunFolder
    verdict: Verdict | None
    checkpoints: tuple[CheckpointRow, ...]
    metrics: tuple[dict[str, Any], ...]
    reward: Mapping[str, Any]
    record: Mapping[str, Any]
    gold: tuple[GoldRow, ...]
    gold_standard_deviation: float | None
    labels: Labels
    answer_prompt: Any
    configs: Mapping[str, str]
    rl_config: Mapping[str, Any]
    notes: dict[str, str]

    @property
    def rewarded(self) -> Rewarded:
        """What RL raised."""
        return rewarded(self.rl_config)

    @property
    def last_update(self) -> int | None:
        """The last update that the folder tells of."""
        seen = [row.update for row in self.checkpoints]
        seen += [row["update"] for row in self.metrics]
        return max(seen, default=None)


def finite(value: Any) -> float | None:
    """A finite number as a float, anything else as None.

    >>> finite(2), finite(float("nan")), finite("2")
    (2.0, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def whole(value: Any) -> int | None:
    """A whole number as an int, anything else as None."""
    number = finite(value)
    return int(number) if number is not None and number == int(number) else None


def read_run(folder: Path) -> Run:
    """Everything that the page shows, except the texts of completions.

    Raises: BadInput if the folder is missing or holds nothing to report.
    """
    rl_folder = folder / "rl" if (folder / "rl").is_dir() else folder
    rl = RunFolder(rl_folder)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; give the folder that crestline run or rl made")
    anything = [folder / "verdict.json", rl.checkpoints_path]
    if rl_folder != folder:
        anything.append(rl.metrics_path)
    if not any(path.exists() for path in anything):
        raise BadInput(
            f"{folder}: nothing to report (no verdict.json, no rl/checkpoints.jsonl); "
            "give the folder that crestline run or rl made"
        )
    notes: dict[str, str] = {}
    verdict = _read_verdict(folder, notes)
    checkpoint_rows = _rows(rl.checkpoints_path, "checkpoints", notes)
    answers = _rows(folder / "answers.jsonl", "answers", notes)
    gold, deviation = _read_gold(folder, verdict, notes)
    reward = _value(folder / "reward" / "evaluation.json", "reward", notes)
    return Run(
        name=folder.resolve().name,
        rl=rl,
        verdict=verdict,
        checkpoints=_checkpoints(checkpoint_rows, verdict, answers),
        metrics=tuple(_rows(rl.metrics_path, "metrics", notes)),
        reward=reward,
        record=_value(folder / "run.json", "run", notes),
        gold=gold,
        gold_standard_deviation=deviation,
        labels=_labels(folder, answers, notes),
        answer_prompt=next((row["prompt"] for row in answers if row.get("prompt")), ""),
        configs=_configs(folder, rl_folder, notes),
        rl_config=_attempt(lambda: _rl_config(rl), "rl_config", notes, {}),
        notes=notes,
    )


_MISSING = {
    "verdict": "There is no verdict.json: the watch has not decided yet.",
    "checkpoints": "There is no checkpoints.jsonl: no checkpoint was measured.",
    "answers": "There is no answers.jsonl: nobody was asked about checkpoints.",
    "metrics": "There is no rl/metrics.jsonl: training curves are missing.",
    "reward": "There is no reward/evaluation.json: the reward model's quality is not known here.",
    "run": "There is no run.json: seconds per stage were not recorded.",
    "rankings": "There is no rankings.jsonl: how many rankings were collected is not known here.",
    "gold": "",
}


def _rl_config(rl: RunFolder) -> dict[str, Any]:
    """The settings of RL, and in place of "auto" what it stood for."""
    resolved = rl.path / "resolved.json"
    return {**rl.read_config(), **(read_json(resolved) if resolved.exists() else {})}


def _attempt(read: Callable[[], T], key: str, notes: dict[str, str], default: T) -> T:
    try:
        return read()
    except BadInput as error:
        notes[key] = f"This part could not be read: {error}"
        return default


def _rows(path: Path, key: str, notes: dict[str, str]) -> list[dict[str, Any]]:
    """Rows of a JSONL file, those with a whole `update` if they have one at all."""
    if not path.exists():
        notes[key] = _MISSING[key]
        return []
    empty: list[dict[str, Any]] = []
    rows = _attempt(lambda: read_jsonl(path), key, notes, empty)
    return [
        {**row, "update": whole(row["update"])} if "update" in row else row
        for row in rows
        if "update" not in row or whole(row["update"]) is not None
    ]


def _value(path: Path, key: str, notes: dict[str, str]) -> Mapping[str, Any]:
    if not path.exists():
        notes[key] = _MISSING[key]
        return {}
    empty: Any = {}
    value = _attempt(lambda: read_json(path), key, notes, empty)
    if not isinstance(value, dict):
        notes[key] = f"This part could not be read: {path} holds no JSON object."
        return {}
    return value


def verdict_of(value: Mapping[str, Any]) -> Verdict:
    """A verdict from its JSON; unusable fields become None, unknown kinds `not_measured`."""
    kind = value.get("kind")
    pair = value.get("interval")
    ends = [whole(end) for end in pair] if isinstance(pair, list | tuple) else []
    rates = value.get("win_rate_interval")
    rate_ends = [finite(end) for end in rates] if isinstance(rates, list | tuple) else []
    known = kind in ("peaked", "still_rising", "nothing_beats_reference", "not_measured")
    points = value.get("curve")
    return Verdict(
        kind=kind if known else "not_measured",  # type: ignore[arg-type]
        update=whole(value.get("update")),
        interval=(ends[0], ends[1]) if _both(ends) else None,  # type: ignore[arg-type]
        distance=finite(value.get("distance")),
        win_rate=finite(value.get("win_rate")),
        win_rate_interval=(rate_ends[0], rate_ends[1]) if _both(rate_ends) else None,  # type: ignore[arg-type]
        num_labels=whole(value.get("num_labels")) or 0,
        answered_by=str(value.get("answered_by") or ""),
        reason=str(value.get("reason") or ""),
        curve=tuple(
            point
            for item in (points if isinstance(points, list | tuple) else ())
            if isinstance(item, Mapping) and (point := _curve_point(item)) is not None
        ),
    )


def _both(pair: list[Any]) -> bool:
    return len(pair) == 2 and None not in pair


def _curve_point(item: Mapping[str, Any]) -> CurvePoint | None:
    update, distance = whole(item.get("update")), finite(item.get("distance"))
    win_rate = finite(item.get("win_rate"))
    if update is None or distance is None or win_rate is None:
        return None
    low, high = finite(item.get("low")), finite(item.get("high"))
    return CurvePoint(
        update=update,
        distance=distance,
        win_rate=win_rate,
        low=win_rate if low is None else low,
        high=win_rate if high is None else high,
        num_duels=whole(item.get("num_duels")) or 0,
        num_wins=finite(item.get("num_wins")) or 0.0,
    )


def _read_verdict(folder: Path, notes: dict[str, str]) -> Verdict | None:
    value = _value(folder / "verdict.json", "verdict", notes)
    return None if "verdict" in notes else verdict_of(value)


def _checkpoints(
    rows: list[dict[str, Any]], verdict: Verdict | None, answers: list[dict[str, Any]]
) -> tuple[CheckpointRow, ...]:
    """Checkpoints and curve joined by update; duels are counted from the answers if need be."""
    measured = {row["update"]: row for row in rows if "update" in row}
    curve = {point.update: point for point in (verdict.curve if verdict else ())}
    duels: dict[int, list[float]] = {}
    for answer in answers:
        outcome = finite(answer.get("outcome"))
        if outcome is not None and "update" in answer:
            duels.setdefault(answer["update"], []).append(outcome)
    found = []
    for update in sorted({*measured, *curve, *duels}):
        row, point, outcomes = measured.get(update, {}), curve.get(update), duels.get(update, [])
        distance = finite(row.get("distance"))
        counted = (point.num_duels, point.num_wins) if point else (len(outcomes), sum(outcomes))
        signals = {name: finite(row.get(name)) for name in SIGNALS}
        found.append(
            CheckpointRow(
                update=update,
                distance=point.distance if distance is None and point else distance,
                proxy=finite(row.get("proxy")),
                proxy_standard_error=finite(row.get("proxy_standard_error")),
                win_rate=point.win_rate if point else None,
                low=point.low if point else None,
                high=point.high if point else None,
                num_duels=counted[0],
                num_wins=counted[1],
                signals={name: value for name, value in signals.items() if value is not None},
            )
        )
    return tuple(found)


def _read_gold(
    folder: Path, verdict: Verdict | None, notes: dict[str, str]
) -> tuple[tuple[GoldRow, ...], float | None]:
    """Gold stays hidden until there is a verdict."""
    if verdict is None:
        return (), None
    found, deviation = [], None
    for row in _rows(folder / "gold.jsonl", "gold", notes):
        deviation = finite(row.get("reference_standard_deviation")) or deviation
        gold = finite(row.get("gold"))
        if gold is not None and "update" in row:
            error = finite(row.get("gold_standard_error")) or 0.0
            found.append(GoldRow(update=row["update"], gold=gold, standard_error=error))
    return tuple(sorted(found, key=lambda row: row.update)), deviation


def _labels(folder: Path, answers: list[dict[str, Any]], notes: dict[str, str]) -> Labels:
    rankings = _rows(folder / "rankings.jsonl", "rankings", notes)
    kinds = sorted({str(row["answered_by"]) for row in rankings if row.get("answered_by")})
    return Labels(
        num_rankings=None if "rankings" in notes else len(rankings),
        rankings_answered_by=", ".join(kinds),
        num_duels=None if "answers" in notes else len(answers),
        num_unranked=sum(finite(row.get("outcome")) is None for row in answers),
    )


def _configs(folder: Path, rl_folder: Path, notes: dict[str, str]) -> dict[str, str]:
    """Settings files by their name inside the run, as text."""
    paths = [folder / "config.yaml", *(folder / stage / "config.yaml" for stage in STAGES)]
    texts = {}
    for path in dict.fromkeys([*paths, rl_folder / "config.yaml"]):
        if path.is_file():
            texts[str(path.relative_to(folder))] = path.read_bytes().decode("utf-8", "replace")
    if not texts:
        notes["config"] = "There is no config.yaml: the settings were not recorded."
    return texts


def numbered_tables(folder: Path, kind: str) -> dict[int, Path]:
    """Parquet files `<kind>_00012.parquet` of a folder by their number, lowest first."""
    found = {}
    for path in sorted(folder.glob(f"{kind}_*.parquet")):
        number = path.stem.removeprefix(f"{kind}_")
        if number.isascii() and number.isdigit():
            found[int(number)] = path
    return dict(sorted(found.items()))


def table_or_none(path: Path, notes: dict[str, str], key: str) -> Table | None:
    """A parquet file's columns; a broken one becomes a note."""
    return _attempt(lambda: dict(read_table(path)), key, notes, None)
