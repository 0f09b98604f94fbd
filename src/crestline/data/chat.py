"""Texts and chat messages as they stand in rows, checked and turned into `PromptText`.

Owns what a prompt or a completion may look like. Knows nothing of files, ranks or splits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from crestline.data.parsers import BrokenChat, Row, describe
from crestline.types import BadInput, Message, PromptText

ROLES = ("system", "user", "assistant")
_TURN = re.compile(r"\r?\n\r?\n(Human|Assistant):")
_ANSWER = re.compile(r"\r?\n\r?\nAssistant:")


def column(row: Row, name: str, expected: str) -> Any:
    """The value of a column that the row must have.

    Raises: BadInput with the place, the columns found and what was expected.
    """
    if name not in row.values:
        raise missing(row, name, expected)
    return row.values[name]


def missing(row: Row, name: str, expected: str) -> BadInput:
    """The complaint about a column that is not there, to be raised by the caller."""
    found = ", ".join(map(str, list(row.values)[:12])) or "none"
    return BadInput(f"{row.where}: no column {name!r}; found columns: {found}; expected {expected}")


def wrong(row: Row, name: str, value: Any, expected: str) -> BadInput:
    """The complaint about a column's value, to be raised by the caller."""
    return BadInput(f"{row.where}: {name} is {describe(value)}; expected {expected}")


def text_of(row: Row, name: str, value: Any) -> str:
    """The value as text that can be written as UTF-8; an empty text is one.

    Raises: BadInput for null, numbers, NaN, lists and half surrogate pairs.
    """
    if not isinstance(value, str):
        raise wrong(row, name, value, "text")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadInput(
                f"{row.where}: {name} holds half a surrogate pair at character {error.start + 1}; "
                "mend the text"
            ) from error
    return str(value)


def spoken(row: Row, name: str, value: Any) -> str:
    """A text that may stand in a CSV. Raises: BadInput where it is none, or a cell that looks like chat messages."""
    _refuse_broken(row, name, value)
    return text_of(row, name, value)


def _refuse_broken(row: Row, name: str, value: Any) -> None:
    """Raises: BadInput for a cell of a CSV that looks like chat messages."""
    if isinstance(value, BrokenChat):
        raise BadInput(
            f"{row.where}: {name} looks like chat messages and is no JSON; "
            "write them as JSON, or use .jsonl"
        )


def messages_of(row: Row, name: str, value: Any) -> list[Message]:
    """The value as chat messages, with role and content only.

    Raises: BadInput for an empty list, an unknown role or a content that is not text.
    """
    _refuse_broken(row, name, value)
    if not isinstance(value, list | tuple) or not value:
        raise wrong(row, name, value, 'chat messages: [{"role": "user", "content": "..."}, ...]')
    messages = []
    for index, message in enumerate(value):
        place = f"{name}[{index}]"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise wrong(row, place, message, "an object with role and content")
        if message["role"] not in ROLES:
            raise wrong(row, f"{place}.role", message["role"], "one of " + ", ".join(ROLES))
        content = text_of(row, f"{place}.content", message["content"])
        messages.append({"role": str(message["role"]), "content": content})
    return messages


def prompt_of(row: Row, name: str, value: Any) -> PromptText:
    """The value as plain text or as chat messages that ask for an answer.

    Raises: BadInput where it is neither, or where the assistant has the last word.
    """
    if isinstance(value, str):
        return spoken(row, name, value)
    if not isinstance(value, list | tuple):
        raise wrong(row, name, value, "text or chat messages")
    return asking(row, name, messages_of(row, name, value))


def asking(row: Row, name: str, messages: list[Message]) -> list[Message]:
    """The messages, which must not be empty nor end with the assistant's."""
    if not messages:
        raise BadInput(f"{row.where}: {name} has no message before the answer; add the question")
    if messages[-1]["role"] == "assistant":
        raise BadInput(
            f"{row.where}: {name} ends with an assistant message; expected the user's as the last"
        )
    return messages


def completion_of(row: Row, name: str, value: Any) -> str:
    """The value as a completion's text: plain, or one assistant message.

    Raises: BadInput where it is neither.
    """
    if isinstance(value, str):
        return spoken(row, name, value)
    if not isinstance(value, list | tuple):
        raise wrong(row, name, value, "text or one assistant message")
    messages = messages_of(row, name, value)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages[:6])
        raise BadInput(
            f"{row.where}: {name} has the messages ({roles}); expected one assistant message"
        )
    return messages[0]["content"]


def as_chat(prompt: PromptText) -> list[Message]:
    """A prompt as chat messages: plain text becomes the user's message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def is_transcript(value: Any) -> bool:
    r"""Whether a value is a dialogue in the way of hh-rlhf.

    >>> is_transcript("\n\nHuman: Hi\n\nAssistant: Hello")
    True
    """
    if not isinstance(value, str):
        return False
    return value.lstrip().startswith("Human:") and _ANSWER.search(value) is not None


def transcript_messages(text: str) -> list[Message]:
    r"""The turns of a dialogue in the way of hh-rlhf; white space around a turn is dropped.

    >>> transcript_messages("\n\nHuman: Hi\n\nAssistant: Hello")[1]
    {'role': 'assistant', 'content': 'Hello'}
    """
    parts = _TURN.split("\n\n" + text.lstrip())
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.strip()}
        for who, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def shared_prompt(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[list[Message], str, str] | None:
    """What two dialogues share before their last answers, and the two answers.

    Returns: (prompt, answer of chosen, answer of rejected); None where they part earlier or where
    one of them does not end with the assistant's answer to a question.
    """
    prompt = list(chosen[:-1])
    if not prompt or prompt != list(rejected[:-1]) or prompt[-1]["role"] == "assistant":
        return None
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        return None
    return prompt, chosen[-1]["content"], rejected[-1]["content"]
