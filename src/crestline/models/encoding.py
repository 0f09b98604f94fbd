"""How a reward model reads (prompt, completion): token ids, and what is cut where they are too many.

Owns the rule about control tokens: in chat messages and in completions the letters of `<|end|>` are letters. Only the
chat template, and a plain-text prompt that is taken as it stands, can make special tokens. Knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from crestline.models.text import render_scored
from crestline.types import PromptText

PRIVATE_USE = range(0xE000, 0xF900)
"""Code points that no text means anything by."""


@dataclass(frozen=True, slots=True)
class Row:
    """One text as token ids.

    is_truncated: it was longer than max_length and lost its front. prompt: rows to the same prompt have the same
    number; those of others may have it by chance.
    """

    ids: list[int]
    is_truncated: bool
    prompt: int

    @property
    def num_tokens(self) -> int:
        return len(self.ids)


class Encoder:
    """A tokenizer as a reward model uses it. max_length: tokens of a row; the end of what is longer is kept."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.special_ids = set(tokenizer.all_special_ids)
        special = {str(token) for token in tokenizer.all_special_tokens}
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special |= {token.content for token in added if token.special}
        words = sorted((word for word in special if len(word) > 1), key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, words)) or r"(?!)")

    def rows(self, prompts: Sequence[PromptText], completions: Sequence[str]) -> list[Row]:
        """Each prompt with its completion as a row; tokenised together, which is much faster than one by one.

        Raises ValueError if there are not as many prompts as completions.
        """
        pieces = [self.pieces(p, c) for p, c in zip(prompts, completions, strict=True)]
        kinds = [
            (len(row) > 1, self.adds_its_own(p)) for row, p in zip(pieces, prompts, strict=True)
        ]
        ids: list[list[int]] = [[] for _ in pieces]
        for cut, own in set(kinds):
            chosen = [n for n, kind in enumerate(kinds) if kind == (cut, own)]
            found = self.tokenizer(
                [pieces[n] if cut else pieces[n][0] for n in chosen],
                is_split_into_words=cut,
                add_special_tokens=own,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
            for n, row in zip(chosen, found, strict=True):
                ids[n] = row
        return [self.cut(row, hash(repr(p))) for row, p in zip(ids, prompts, strict=True)]

    def adds_its_own(self, prompt: PromptText) -> bool:
        """Whether the tokenizer adds its special tokens: not where a chat template has written them."""
        return isinstance(prompt, str) or not self.tokenizer.chat_template

    def pieces(self, prompt: PromptText, completion: str) -> list[str]:
        """The scored text, cut inside every control token that somebody typed; one piece where nobody did."""
        text = render_scored(self.tokenizer, prompt, completion)
        if isinstance(prompt, str):
            cuts = [m.start() + 1 for m in self.control.finditer(text) if m.end() > len(prompt)]
            return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
        typed = [message["content"] for message in prompt]
        if not any(self.control.search(words) for words in (*typed, completion)):
            return [text]
        mark = next(chr(code) for code in PRIVATE_USE if chr(code) not in text)

        def marked(words: str) -> str:
            return self.control.sub(lambda found: found[0][0] + mark + found[0][1:], words)

        messages = [{**message, "content": marked(message["content"])} for message in prompt]
        return render_scored(self.tokenizer, messages, marked(completion)).split(mark)

    def cut(self, ids: list[int], prompt: int) -> Row:
        """A row of at most max_length: a special first token and the end stay. An empty text is one token."""
        if not ids:
            end = self.tokenizer.eos_token_id
            ids = [self.tokenizer.pad_token_id if end is None else end]
        over = len(ids) - self.max_length
        if over <= 0:
            return Row(ids, False, prompt)
        keeps_first = ids[0] in self.special_ids and self.max_length > 1
        return Row(ids[:1] + ids[over + 1 :] if keeps_first else ids[over:], True, prompt)
