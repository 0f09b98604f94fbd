"""Completions for the page: the same prompts at every checkpoint, and what training saw.

Owns which rows are shown (by position, never by quality) and how much of each text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crestline.report.reading import Run, Table, finite, numbered_tables, table_or_none
from crestline.report.words import inert, number, percent

NUM_PROMPTS = 8
NUM_BROWSED = 6
NUM_COMPLETIONS = 4
PROMPT_LIMIT = 700
TEXT_LIMITS = (1500, 700, 300, 120)
"""Characters kept of a completion; the first limit with which all answers fit into BUDGET."""
BUDGET = 900_000
"""Characters of all answers that the page carries."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The same prompts answered by every checkpoint.

    rows: for each update, one entry a prompt: text, score in [0, 1], its words, tokens; None where
    there is none.
    """

    prompts: tuple[str, ...]
    rows: Mapping[int, tuple[dict[str, Any] | None, ...]]
    num_prompts: int


def prompt_text(prompt: Any) -> str:
    """A prompt as a person reads it; chat messages come as a list or as JSON.

    >>> prompt_text('[{"role": "user", "content": "Hi"}]')
    'Hi'
    """
    messages = prompt
    if isinstance(prompt, str):
        if not prompt.startswith("[{"):
            return inert(prompt, PROMPT_LIMIT)
        try:
            messages = json.loads(prompt)
        except (ValueError, RecursionError):
            return inert(prompt, PROMPT_LIMIT)
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        return inert(prompt, PROMPT_LIMIT)
    if len(messages) == 1:
        return inert(messages[0].get("content", ""), PROMPT_LIMIT)
    told = (f"{m.get('role', '')}: {m.get('content', '')}" for m in messages)
    return inert("\n".join(told), PROMPT_LIMIT)


def answers_of(run: Run) -> Answers:
    """The texts of all kept evaluations, at the same few prompts."""
    tables = {}
    for update, path in numbered_tables(run.rl.path / "evaluations", "evaluation").items():
        table = table_or_none(path, run.notes, "evaluations")
        if table and table.get("completion"):
            tables[update] = table
    if not tables:
        run.notes.setdefault(
            "evaluations",
            "There are no rl/evaluations: what checkpoints answered cannot be shown.",
        )
        return Answers((), {}, 0)
    first = next(iter(tables.values()))
    prompts = first.get("prompt") or [
        f"prompt {index}" for index in range(len(first["completion"]))
    ]
    chosen = _spaced_rows(prompts)
    told = {
        update: tuple(_answer(table, row) for row in chosen) for update, table in tables.items()
    }
    return Answers(tuple(prompt_text(prompts[row]) for row in chosen), _fit(told), len(prompts))


def _spaced_rows(prompts: Sequence[Any]) -> list[int]:
    """Rows of different prompts at even spaces over the table."""
    first: dict[str, int] = {}
    for row, prompt in enumerate(prompts):
        first.setdefault(json.dumps(prompt, default=str), row)
    places = list(first.values())
    count = min(NUM_PROMPTS, len(places))
    return [places[i * len(places) // count] for i in range(count)]


def _cell(table: Table, name: str, row: int) -> Any:
    column = table.get(name) or []
    return column[row] if row < len(column) else None


def _answer(table: Table, row: int) -> dict[str, Any] | None:
    text = _cell(table, "completion", row)
    if text is None:
        return None
    score = finite(_cell(table, "calibrated", row))
    return {
        "text": str(text),
        "score": None if score is None else round(min(max(score, 0.0), 1.0), 4),
        "told": percent(score),
        "tokens": number(finite(_cell(table, "num_tokens", row))),
    }


def _fit(
    told: Mapping[int, tuple[dict[str, Any] | None, ...]],
) -> dict[int, tuple[dict[str, Any] | None, ...]]:
    """Cuts texts such that all of them together stay inside the budget."""
    lengths = [len(answer["text"]) for row in told.values() for answer in row if answer]
    limit = next(
        (most for most in TEXT_LIMITS if sum(min(n, most) for n in lengths) <= BUDGET),
        TEXT_LIMITS[-1],
    )
    return {
        update: tuple(
            {**answer, "text": inert(answer["text"], limit)} if answer else None for answer in row
        )
        for update, row in told.items()
    }


def browsed(run: Run) -> list[dict[str, Any]]:
    """A few completions at a few updates of training, first and last among them."""
    paths = numbered_tables(run.rl.path / "completions", "completions")
    updates = list(paths)
    if not updates:
        run.notes.setdefault(
            "completions", "There are no rl/completions: what training saw cannot be shown."
        )
        return []
    count = min(NUM_BROWSED, len(updates))
    chosen = {updates[i * (len(updates) - 1) // max(count - 1, 1)] for i in range(count)}
    if run.verdict and run.verdict.update:
        crest = run.verdict.update
        chosen.add(min(updates, key=lambda update: (abs(update - crest), update)))
    found = []
    for update in sorted(chosen):
        table = table_or_none(paths[update], run.notes, "completions")
        if table and table.get("completion"):
            found.append({"update": update, "rows": _browsed_rows(table)})
    return found


def _browsed_rows(table: Table) -> list[dict[str, str]]:
    length = len(table["completion"])
    count = min(NUM_COMPLETIONS, length)
    return [
        {
            "prompt": prompt_text(_cell(table, "prompt", row) or ""),
            "completion": inert(_cell(table, "completion", row), TEXT_LIMITS[1]),
            "calibrated": percent(finite(_cell(table, "calibrated", row))),
            "reward": number(finite(_cell(table, "reward", row))),
            "advantage": number(finite(_cell(table, "advantage", row))),
            "num_tokens": number(finite(_cell(table, "num_tokens", row))),
            "stop": inert(_cell(table, "stop", row) or "–", 40),
        }
        for row in (i * length // count for i in range(count))
    ]
