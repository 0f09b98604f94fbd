"""What stands in a request: JSON bodies read into prompts and completions, and every complaint about them.

Owns the two contracts' request shapes. Knows nothing of HTTP servers, queues, tokenizers or models.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from crestline.types import Message, PromptText

ROLES = ("system", "user", "assistant")


class Refused(Exception):
    """A request that gets no scores: the HTTP status, and one line that says why."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of one request: completions[n] answers prompts[n]."""

    prompts: list[PromptText]
    completions: list[str]

    def hashes(self) -> list[str]:
        """What each answer carries so that it can be matched to its text; see `text_hash`."""
        return [text_hash(p, c) for p, c in zip(self.prompts, self.completions, strict=True)]


def text_hash(prompt: PromptText, completion: str) -> str:
    """SHA-256 (hexadecimal) of the UTF-8 of prompt + completion; a chat is hashed as lines "role: content".

    >>> text_hash("2+2=", "4") == text_hash("", "2+2=4")
    True
    >>> text_hash([{"role": "user", "content": "Hi"}], "Yo") == text_hash("user: Hi\\nassistant: ", "Yo")
    True
    """
    if not isinstance(prompt, str):
        said = [f"{message['role']}: {message['content']}\n" for message in prompt]
        prompt = "".join(said) + "assistant: "
    return hashlib.sha256((prompt + completion).encode()).hexdigest()


def score_texts(body: bytes) -> Texts:
    """The texts of a body `{"prompts": [...], "completions": [...]}`.

    A prompt is text or chat messages, a completion text or one assistant message in a list.
    Raises Refused (400, 422) with the field and the index of what is wrong.
    """
    fields = _object(body)
    prompts = _list(fields, "prompts")
    completions = _list(fields, "completions")
    _same_length("prompts", prompts, "completions", completions)
    return Texts(
        [_prompt(f"prompts[{n}]", prompt) for n, prompt in enumerate(prompts)],
        [_completion(f"completions[{n}]", text) for n, text in enumerate(completions)],
    )


def query_texts(body: bytes, *, query_start: str = "", query_end: str = "") -> Texts:
    """The texts of a body in OpenRLHF's shape: `{"query": [...], "prompts": [...], "labels": [...]}`.

    A query is prompt and completion in one, rendered by the trainer, special tokens included: it is scored as it
    stands, but for query_start and query_end, which are cut off its ends. prompts, labels and what else is in the body
    do not change the score. Raises Refused (400, 422) with the field and the index of what is wrong.
    """
    fields = _object(body)
    queries = _list(fields, "query")
    if fields.get("prompts") is not None:
        _same_length("query", queries, "prompts", _list(fields, "prompts"))
    texts = [_text(f"query[{n}]", query) for n, query in enumerate(queries)]
    cut = [text.removeprefix(query_start).removesuffix(query_end) for text in texts]
    return Texts(list(cut), [""] * len(cut))


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8 (byte {error.start + 1})") from None
    except RecursionError:
        raise Refused(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(400, f"the body is {_shown(value)}; expected a JSON object")
    return value


def _list(fields: dict[str, Any], name: str) -> list[Any]:
    if name not in fields:
        found = ", ".join(ascii(key[:30]) for key in sorted(fields)[:10]) or "none"
        raise Refused(422, f"no field {name!r}; found: {found}")
    value = fields[name]
    if not isinstance(value, list):
        raise Refused(422, f"{name} is {_shown(value)}; expected a list")
    return value


def _same_length(first: str, some: list[Any], second: str, others: list[Any]) -> None:
    if len(some) != len(others):
        raise Refused(
            422, f"{first} has {len(some)} entries and {second} {len(others)}; give one of each"
        )


def _text(place: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Refused(422, f"{place} is {_shown(value)}; expected text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            line = f"{place} holds half a surrogate pair at character {error.start + 1}"
            raise Refused(422, line) from None
    return value


def _messages(place: str, value: list[Any]) -> list[Message]:
    if not value:
        raise Refused(422, f"{place} is an empty list; expected text or chat messages")
    messages = []
    for n, message in enumerate(value):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            line = f"{place}[{n}] is {_shown(message)}; expected an object with role and content"
            raise Refused(422, line)
        if message["role"] not in ROLES:
            line = f"{place}[{n}].role is {_shown(message['role'])}; expected {', '.join(ROLES)}"
            raise Refused(422, line)
        content = _text(f"{place}[{n}].content", message["content"])
        messages.append({"role": message["role"], "content": content})
    return messages


def _prompt(place: str, value: Any) -> PromptText:
    if not isinstance(value, list):
        return _text(place, value)
    messages = _messages(place, value)
    if messages[-1]["role"] == "assistant":
        raise Refused(422, f"{place} ends with an assistant message; put it in completions")
    return messages


def _completion(place: str, value: Any) -> str:
    if not isinstance(value, list):
        return _text(place, value)
    messages = _messages(place, value)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise Refused(422, f"{place} is a chat; expected text or one assistant message")
    return messages[0]["content"]


def _shown(value: Any) -> str:
    """A value in a few words: what it is, and what it says if that is short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value!r:.20}"
    if isinstance(value, str):
        return f"the text {value[:30]!a}"
    return "a list" if isinstance(value, list) else "an object"
