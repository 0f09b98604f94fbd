"""Rows to prompts, demonstrations, texts and samples, and back to rows.

Owns the column names of these formats (TRL's). Rankings are in `rankings`; writing to disk
belongs to `runs`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from crestline.data.chat import (
    as_chat,
    asking,
    column,
    completion_of,
    messages_of,
    missing,
    prompt_of,
    spoken,
    text_of,
    wrong,
)
from crestline.data.parsers import Row
from crestline.data.rows import read_rows
from crestline.types import BadInput, Demonstration, Prompt, PromptText


def read_texts(source: str, *, split: str = "train") -> list[str]:
    """Texts to pretrain on: the column `text`, or `messages` joined by blank lines.

    source, split: as in `read_rows`. Empty texts are kept.
    Raises: BadInput naming file, line and column.
    """
    return [_text(row) for row in read_rows(source, split=split)]


def _text(row: Row) -> str:
    if "text" in row.values and (_has(row, "text") or not _has(row, "messages")):
        return spoken(row, "text", row.values["text"])
    if "messages" in row.values:
        messages = messages_of(row, "messages", row.values["messages"])
        return "\n\n".join(message["content"] for message in messages)
    raise missing(row, "text", "'text', or 'messages' (chat messages)")


def _has(row: Row, name: str) -> bool:
    """Whether the column says something: a CSV writes an empty text where others write null."""
    return row.values.get(name) not in (None, "", [])


def read_prompts(source: str, *, split: str = "train") -> list[Prompt]:
    """Prompts: the column `prompt` (text or chat messages); all other columns are kept beside it, dates and decimals as
    text.

    source, split: as in `read_rows`.
    Raises: BadInput naming file, line and column.
    """
    prompts = []
    for row in read_rows(source, split=split):
        text = prompt_of(row, "prompt", column(row, "prompt", "'prompt' (text or chat messages)"))
        columns = {n: _as_json(value) for n, value in row.values.items() if n != "prompt"}
        prompts.append(Prompt(text=text, columns=columns))
    return prompts


def _as_json(value: Any) -> Any:
    """Dates, times and decimals as text, wherever they stand in a value."""
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal | timedelta | str) else value


def read_demonstrations(source: str, *, split: str = "train") -> list[Demonstration]:
    """Demonstrations: `prompt` and `completion`, or `messages` that end with the assistant's.

    source, split: as in `read_rows`. A chat completion to a plain prompt makes the prompt the
    user's message.
    Raises: BadInput naming file, line and column.
    """
    return [_demonstration(row) for row in read_rows(source, split=split)]


def _demonstration(row: Row) -> Demonstration:
    if not _has(row, "completion") and _has(row, "messages"):
        messages = messages_of(row, "messages", row.values["messages"])
        if messages[-1]["role"] != "assistant":
            raise BadInput(
                f"{row.where}: messages end with the {messages[-1]['role']}'s; "
                "expected the assistant's answer as the last"
            )
        prompt: PromptText = asking(row, "messages", messages[:-1])
        return Demonstration(prompt=prompt, completion=messages[-1]["content"])
    expected = "'prompt' and 'completion', or 'messages'"
    prompt = prompt_of(row, "prompt", column(row, "prompt", expected))
    value = column(row, "completion", expected)
    completion = completion_of(row, "completion", value)
    if not isinstance(value, str):
        prompt = as_chat(prompt)
    return Demonstration(prompt=prompt, completion=completion)


def read_samples(source: str) -> list[tuple[PromptText, list[str]]]:
    """Sampled completions: `prompt` and `completions`, a list of texts.

    source: as in `read_rows`.
    Raises: BadInput naming file, line and column; also for an empty list of completions.
    """
    samples = []
    for row in read_rows(source):
        expected = "'prompt' and 'completions' (a list of texts)"
        prompt = prompt_of(row, "prompt", column(row, "prompt", expected))
        values = column(row, "completions", expected)
        if not isinstance(values, list | tuple) or not values:
            raise wrong(row, "completions", values, "a list of at least one text")
        texts = [text_of(row, f"completions[{i}]", value) for i, value in enumerate(values)]
        samples.append((prompt, texts))
    return samples


def texts_as_rows(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Rows that `read_texts` reads back.

    >>> texts_as_rows(["Once."])
    [{'text': 'Once.'}]
    """
    return [{"text": text} for text in texts]


def prompts_as_rows(prompts: Iterable[Prompt]) -> list[dict[str, Any]]:
    """Rows that `read_prompts` reads back, the prompt first and its other columns behind it.

    Raises: BadInput for a column that no JSON can hold.
    """
    prompts = list(prompts)
    for name in {name for prompt in prompts for name in prompt.columns}:
        try:
            json.dumps([prompt.columns.get(name) for prompt in prompts])
        except TypeError as error:
            raise BadInput(f"prompts: column {name!r}: {error}; leave that column out") from None
    return [{"prompt": prompt.text, **prompt.columns} for prompt in prompts]


def demonstrations_as_rows(demonstrations: Iterable[Demonstration]) -> list[dict[str, Any]]:
    """Rows that `read_demonstrations` reads back; a chat prompt gets a chat completion."""
    return [
        {
            "prompt": item.prompt,
            "completion": item.completion
            if isinstance(item.prompt, str)
            else [{"role": "assistant", "content": item.completion}],
        }
        for item in demonstrations
    ]


def samples_as_rows(samples: Iterable[tuple[PromptText, Sequence[str]]]) -> list[dict[str, Any]]:
    """Rows that `read_samples` reads back."""
    return [{"prompt": prompt, "completions": list(texts)} for prompt, texts in samples]
