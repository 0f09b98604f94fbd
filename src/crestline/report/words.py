"""The words of page and card: the verdict in a sentence, who answered, what was not checked.

Also numbers as people read them. Knows nothing of files, pictures or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import isfinite

from crestline.types import Verdict

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")

_WHO = {
    "stand-in": ("The stand-in's preference", "estimated by a stand-in, not by people"),
    "simulated people": (
        "The simulated people's preference",
        "simulated people: nobody real has read this model's answers",
    ),
    "function": ("The function's preference", "answered by a function, not by people"),
    "people": ("People's preference", "answered by people"),
}


def kind_of_answerer(answered_by: str) -> str:
    """The kind that must be shown: of several, the one furthest from real people.

    >>> kind_of_answerer("people, stand-in"), kind_of_answerer("")
    ('stand-in', '')
    """
    return next((kind for kind in _WHO if kind in answered_by.lower()), "")


def badge(answered_by: str) -> str:
    """Who answered, as a badge."""
    kind = kind_of_answerer(answered_by)
    if kind:
        return _WHO[kind][1]
    return f"answered by {answered_by}" if answered_by else "who answered was not recorded"


def preference_of(answered_by: str) -> str:
    """Whose preference it is, to begin a sentence: "People's preference"."""
    kind = kind_of_answerer(answered_by)
    return _WHO[kind][0] if kind else "Preference"


def headline(verdict: Verdict | None, last_update: int | None) -> str:
    """The verdict in one or two short sentences.

    last_update: the run's last update, None if not known.
    """
    if verdict is None:
        return "This run has no verdict yet."
    whose = preference_of(verdict.answered_by)
    shipped = f"Shipped: checkpoint-{verdict.update}."
    of = f" of {last_update}" if last_update is not None else ""
    if verdict.kind == "peaked":
        return f"{whose} peaked at update {verdict.update}{of}. {shipped}"
    if verdict.kind == "still_rising":
        if verdict.update == last_update:
            return f"{whose} was still rising at update {verdict.update}, the last. {shipped}"
        if verdict.update is not None:
            until = f" up to update {last_update}" if last_update is not None else ""
            return f"{whose}: no decline is established{until}. {shipped}"
        return f"{whose} was still rising at the end. Nothing was shipped."
    if verdict.kind == "nothing_beats_reference":
        if verdict.update is None:
            return "No checkpoint was shown to beat the model it started from. Nothing was shipped."
        if verdict.update:
            return f"No checkpoint was shown to beat the model it started from. {shipped}"
        return (
            "No checkpoint was shown to beat the model it started from. "
            "Shipped: the start itself, unchanged."
        )
    if verdict.update is not None:
        return f"{whose} was not measured. {shipped}"
    return f"{whose} was not measured. Nothing was shipped."


def not_checked(answered_by: str, *, simulated_gold: bool = False) -> list[str]:
    """What neither the run nor the verdict says anything about, as sentences."""
    kind = kind_of_answerer(answered_by)
    missing = []
    if kind in ("stand-in", "simulated people", "function"):
        missing.append(
            "Whether real people prefer these answers. "
            + badge(answered_by)[:1].upper()
            + badge(answered_by)[1:]
            + "."
        )
    elif kind == "people":
        missing.append(
            "Whether other people than those who answered would say the same: the verdict holds "
            "for them, their instructions and their prompts."
        )
    else:
        missing.append("Whether people prefer these answers: who answered is not known.")
    missing += [
        "Safety: harmful, private or biased content was neither looked for nor filtered.",
        "Truth: nothing checks that what the model says is so.",
        "Prompts unlike the training prompts, and languages other than theirs.",
        "Other ways of sampling: every number holds for the temperature and length of the run.",
        "Chance: this is one run with one seed; another seed has another crest.",
    ]
    if simulated_gold:
        missing.append(
            "That the gold curve tells of people: it is the rule that the simulated people were "
            "made of."
        )
    return missing


def number(value: float | None, digits: int = 3) -> str:
    """A number as people read it, with so many digits; whole numbers and those from 1,000 on with all before the point.

    >>> number(12345.6), number(0.12345), number(40.0), number(999.6), number(-0.0), number(None)
    ('12,346', '0.123', '40', '1,000', '0', '–')
    """
    if value is None or not isfinite(value):
        return "–"
    rounded = float(f"{value:.{digits}g}")
    is_whole = value == int(value) or abs(rounded) >= 1000
    told = f"{value + 0.0:,.0f}" if is_whole and abs(value) < 1e15 else f"{value:.{digits}g}"
    return told.replace("-", "−", 1 if told.startswith("-") else 0)


def percent(fraction: float | None) -> str:
    """A fraction in percent, without decimals.

    >>> percent(0.784)
    '78\\xa0%'
    """
    return "–" if fraction is None else f"{100 * fraction:.0f}\u00a0%"


def percent_range(ends: Iterable[float]) -> str:
    """Two fractions as a range in percent.

    >>> percent_range((0.72, 0.83))
    '72–83\\xa0%'
    """
    return "–".join(f"{100 * end:.0f}" for end in ends) + "\u00a0%"


def duration(seconds: float | None) -> str:
    """Seconds as people say them.

    >>> duration(12.3), duration(200), duration(3900)
    ('12 s', '3 min 20 s', '1 h 5 min')
    """
    if seconds is None or seconds < 0:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def inert(text: object, limit: int = 0) -> str:
    """Text that can be written and shown: no control characters, no halves of surrogate pairs.

    limit: characters kept; 0 keeps all. What was cut is counted.

    >>> inert("a\\x00b"), inert("abcdef", 3)
    ('a␀b', 'abc … [3 more characters]')
    """
    told = str(text).encode("utf-8", "replace").decode("utf-8").replace("\r\n", "\n")
    cut = len(told) - limit if limit else 0
    if cut > 0:
        told = told[:limit]
    shown = _HIDDEN.sub(_visible, told)
    return f"{shown} … [{cut:,} more characters]" if cut > 0 else shown


def _visible(found: re.Match[str]) -> str:
    code = ord(found.group())
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"
