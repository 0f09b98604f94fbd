"""Rows with `chosen` and `rejected` to rankings: TRL, hh-rlhf, OpenRLHF, RewardBench, CSV.

Owns how the prompt and the completions of such a row are told apart. Files, other formats and
which rankings teach something are not known here.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from typing import Any

from crestline.data.chat import (
    as_chat,
    asking,
    column,
    completion_of,
    is_transcript,
    messages_of,
    prompt_of,
    shared_prompt,
    text_of,
    transcript_messages,
    wrong,
)
from crestline.data.columns import Found, Keys, prompt_name, ranking_of, unused_of
from crestline.data.parsers import Row
from crestline.types import Message, PromptText

EXPECTED = (
    "'completions' with 'context' or 'prompt', or 'chosen' and 'rejected' with or without 'prompt'"
)
_REWARDBENCH = ("chosen_model", "rejected_model", "num_correct", "total_completions")
"""Columns of RewardBench's files, whose plain prompts are what a person asked."""


def pair_in(row: Row, keys: Keys) -> Found:
    """The ranking of a row with `chosen` and `rejected`, whatever their names are.

    Texts, chat messages or hh-rlhf transcripts; lists of texts are several that are equally good
    (RewardBench 2). Raises: BadInput with the place.
    """
    row = _renamed(row, keys)
    chosen, rejected = column(row, "chosen", EXPECTED), column(row, "rejected", EXPECTED)
    name = prompt_name(row, keys)
    if _are_texts(chosen) or _are_texts(rejected):
        prompt: PromptText = "" if name is None else prompt_of(row, name, row.values[name])
        good, bad = _texts(row, "chosen", chosen), _texts(row, "rejected", rejected)
    else:
        told = _told_apart(row, name, chosen, rejected)
        if told is None:
            return Found(("diverging",))
        prompt, good, bad = told[0], [told[1]], [told[2]]
    if prompt and any(row.values.get(mark) is not None for mark in _REWARDBENCH):
        prompt = as_chat(prompt)
    rank = 0 if _tie(row) else 1
    ranking = ranking_of(
        row,
        keys,
        prompt=prompt,
        completions=[*good, *bad],
        ranks=[0] * len(good) + [rank] * len(bad),
    )
    used = ("chosen", "rejected", "tie", name, keys.source)
    return Found((ranking,), unused_of(row.values, used, row))


def _renamed(row: Row, keys: Keys) -> Row:
    """The row with the columns that the user named under the names that are read."""
    given = {"chosen": keys.chosen, "rejected": keys.rejected}
    names = {name: key for name, key in given.items() if key and key != name}
    if not names:
        return row
    moved = {name: column(row, key, f"the column of --{name}_key") for name, key in names.items()}
    rest = {name: value for name, value in row.values.items() if name not in names.values()}
    return replace(row, values={**rest, **moved})


def _told_apart(
    row: Row, name: str | None, chosen: Any, rejected: Any
) -> tuple[PromptText, str, str] | None:
    """Prompt and the two completions; None where two dialogues part before their last answers."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise wrong(row, "rejected", rejected, "the same kind as chosen: both texts or both chats")
    if name is not None and row.values[name] == "":
        name = None
    is_whole = _is_whole_dialogue(chosen) or _is_whole_dialogue(rejected)
    if name is not None and not is_whole and not _repeat(row.values[name], chosen, rejected):
        prompt = prompt_of(row, name, row.values[name])
        if not isinstance(chosen, str):
            prompt = as_chat(prompt)
        return (
            prompt,
            completion_of(row, "chosen", chosen),
            completion_of(row, "rejected", rejected),
        )
    if is_transcript(chosen) != is_transcript(rejected):
        return None
    if is_transcript(chosen):
        return shared_prompt(
            transcript_messages(text_of(row, "chosen", chosen)),
            transcript_messages(text_of(row, "rejected", rejected)),
        )
    if isinstance(chosen, str):
        return "", completion_of(row, "chosen", chosen), completion_of(row, "rejected", rejected)
    good, bad = messages_of(row, "chosen", chosen), messages_of(row, "rejected", rejected)
    return shared_prompt(_conversation(row, name, good), _conversation(row, name, bad))


def _conversation(row: Row, name: str | None, dialogue: list[Message]) -> list[Message]:
    """The dialogue with what the prompt says before it.

    A dialogue that a person begins is whole beside a prompt that is no list of messages.
    """
    value = None if name is None else row.values[name]
    more_rules, said = _rules_and_turns(dialogue)
    is_answer = _begins(said, "assistant")
    is_chat = isinstance(value, list | tuple)
    if name is None or value is None or not (is_chat or is_answer):
        return dialogue
    prompt = messages_of(row, name, value) if is_chat else as_chat(prompt_of(row, name, value))
    rules, asked = _rules_and_turns(prompt)
    # the last answer is what is judged, whatever the prompt says
    before = _joined(asked, said[:-1])
    if is_answer and len(before) == len(asked) + len(said) - 1:
        asking(row, name, prompt)
    return [*_joined(rules, more_rules), *before, *said[-1:]]


def _begins(chat: list[Message], role: str) -> bool:
    return bool(chat) and chat[0]["role"] == role


def _rules_and_turns(chat: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system's messages at the beginning, and what follows."""
    rules = list(takewhile(lambda message: message["role"] == "system", chat))
    return rules, chat[len(rules) :]


def _joined(first: list[Message], then: list[Message]) -> list[Message]:
    """Both in a row; what `then` repeats of `first` stands once, white space around it aside.

    Repeated is the longest end of `first` with which `then` begins. Where there is none and a person begins `then`, it
    is whole if it holds `first`, or `first` begins with it, or both ask: that is the same question in other words.
    """
    before, after = ([(m["role"], m["content"].strip()) for m in chat] for chat in (first, then))
    cut = next(at for at in range(len(before) + 1) if after[: len(before) - at] == before[at:])
    if cut == len(before) and _begins(then, "user"):
        is_inside = any(after[at : at + len(before)] == before for at in range(len(after)))
        both_ask = bool(first) and first[-1]["role"] == "user"
        if is_inside or both_ask or before[: len(after)] == after:
            return then
    return [*first, *then[len(before) - cut :]]


def _repeat(prompt: Any, chosen: Any, rejected: Any) -> bool:
    """Whether both are transcripts that hold the prompt: their beginning, or one of their questions."""
    if not is_transcript(chosen) or not is_transcript(rejected):
        return False
    dialogues = [
        [(m["role"], m["content"].strip()) for m in transcript_messages(said)]
        for said in (chosen, rejected)
    ]
    if isinstance(prompt, list | tuple):
        asked = [
            (m.get("role"), str(m.get("content")).strip()) for m in prompt if isinstance(m, dict)
        ]
        return all(dialogue[: len(asked)] == asked for dialogue in dialogues)
    if not isinstance(prompt, str):
        return False
    question = prompt.strip()
    return all(
        said.lstrip().startswith(question) or ("user", question) in dialogue
        for said, dialogue in zip((chosen, rejected), dialogues, strict=True)
    )


def _is_whole_dialogue(chosen: Any) -> bool:
    """Whether `chosen` repeats the prompt: chat messages, not all of them the assistant's."""
    if not isinstance(chosen, list | tuple):
        return False
    asking = ("user", "system")
    return any(isinstance(message, dict) and message.get("role") in asking for message in chosen)


def _are_texts(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(item, str) for item in value)
    )


def _texts(row: Row, name: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return [completion_of(row, name, value)]
    if not _are_texts(value):
        raise wrong(row, name, value, "the same kind as the other: a text or a list of texts")
    return [text_of(row, f"{name}[{index}]", text) for index, text in enumerate(value)]


def _tie(row: Row) -> bool:
    value = row.values.get("tie")
    if value is None or value == "":
        return False
    word = value.strip().lower() if isinstance(value, str) else value
    if word in (True, "true", "1"):
        return True
    if word in (False, "false", "0"):
        return False
    raise wrong(row, "tie", value, "true or false")
