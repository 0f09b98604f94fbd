"""Sample completions from a policy, recording tokens, log-probabilities and why each stopped.

Owns texts, seeds and the schedule: prompts that stand next to each other and are equal are read once, completions
that ended make room for the next. Each completion has its own random stream, a function of its seed and the token's
position, so that nothing but its seed, prompt and weights decides what it says. Text in, `Completion` out.

Letters: N completions, B rows being written, P prompts, T completion tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crestline.models.draws import draw, uniforms
from crestline.models.engine_choice import engine_of
from crestline.models.engines import Engine, Session
from crestline.models.lora import origin
from crestline.models.policy import in_eval
from crestline.models.text import render_prompt
from crestline.types import BadInput, Completion, NotFinite, PromptText

ROWS_AT_ONCE = 256
STEPS_UNSEEN = {"cuda": 8}
"""Steps after which ended rows are looked for, where looking waits for the device; elsewhere every step."""
DRAWN_ON = {"mps": torch.device("cpu")}
"""Where tokens are drawn for devices that know no float64; elsewhere on the device itself."""
WORTH_MOVING = 8
"""Rows are dropped or appended when at least one row in so many has ended."""
LOGITS_TOGETHER = 1 << 24
"""Logits (a number of them) that are in memory at once."""


class PolicySampler:
    """Samples from a policy that lives in this process.

    max_completion_length: tokens. temperature: above 0. batch_size: completions decoded together at most. engine:
    "auto" takes ours where it computes the model exactly, else transformers'. dtype: of our engine's products; None
    takes bfloat16 where that is fast, else the weights' own.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_completion_length: int,
        temperature: float = 1.0,
        batch_size: int = ROWS_AT_ONCE,
        engine: str = "auto",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_completion_length, self.temperature = max_completion_length, temperature
        self.batch_size = batch_size
        self.end_ids = end_token_ids(model, tokenizer)
        self.engine: Engine = engine_of(model, engine, dtype=dtype)
        self.context = context_of(model)
        self.vocabulary = int(model.config.get_text_config().vocab_size)

    def refresh(self) -> None:
        """Take the model's current weights; call after every update."""
        self.engine.refresh(self.model)

    def encode(self, prompts: Sequence[PromptText]) -> list[list[int]]:
        """Token ids of each rendered prompt. Raises BadInput for one that leaves no room for a completion."""
        encoded = encode_prompts(self.tokenizer, prompts)
        check_room(prompts, encoded, self.max_completion_length, self.context)
        return encoded

    @torch.inference_mode()
    def sample(self, prompts: Sequence[PromptText], seeds: Sequence[int]) -> list[Completion]:
        """One completion for each prompt; seeds[i] names its random stream.

        Raises BadInput as `encode`, and NotFinite where the policy's logits are not finite.
        """
        encoded = self.encode(prompts)
        if not encoded:
            return []
        with in_eval(self.model):
            try:
                return self._completions(self._written(encoded, seeds))
            except FloatingPointError:
                name = origin(self.model) or "the model"
                raise NotFinite(
                    f"{name} gives logits that are not finite numbers: its weights are damaged, or --temperature "
                    f"{self.temperature:g} is too small; give another model or a higher temperature"
                ) from None

    def _written(self, encoded: Sequence[list[int]], seeds: Sequence[int]) -> Writing:
        """The completions of these prompts, written to their ends. Raises FloatingPointError as `Writing.run`."""
        length = self.max_completion_length
        groups = groups_of(encoded, self.batch_size)
        session, rows = self.engine.open(
            [len(group.ids) for group in groups],
            [len(group.members) for group in groups],
            length,
            self.batch_size,
        )
        device = next(self.model.parameters()).device
        writing = Writing(
            session,
            groups if rows == self.batch_size else groups_of(encoded, rows),
            uniforms(seeds, length),
            rows=rows,
            rows_together=max(1, LOGITS_TOGETHER // self.vocabulary),
            temperature=self.temperature,
            end_ids=self.end_ids,
            device=device,
        )
        writing.run()
        return writing

    def _completions(self, writing: Writing) -> list[Completion]:
        counts, ended = writing.counts_N.tolist(), writing.ended_N.tolist()
        tokens = [row[:n] for row, n in zip(writing.tokens_NT.tolist(), counts, strict=True)]
        logprobs = [row[:n] for row, n in zip(writing.logprobs_NT.tolist(), counts, strict=True)]
        said = [row[:-1] if end else row for row, end in zip(tokens, ended, strict=True)]
        texts = self.tokenizer.batch_decode(said, skip_special_tokens=True)
        return [
            Completion(
                text=text,
                tokens=tuple(row),
                logprobs=tuple(numbers),
                stop="end" if end else "length",
            )
            for text, row, numbers, end in zip(texts, tokens, logprobs, ended, strict=True)
        ]


@dataclass(frozen=True)
class Group:
    """A prompt's ids and the numbers of the completions that continue it."""

    ids: list[int]
    members: list[int]


def groups_of(encoded: Sequence[list[int]], most: int) -> list[Group]:
    """Neighbouring equal prompts as groups of at most `most`.

    >>> [group.members for group in groups_of([[5], [5], [5], [6], [5]], 2)]
    [[0, 1], [2], [3], [4]]
    """
    groups: list[Group] = []
    for number, ids in enumerate(encoded):
        if groups and groups[-1].ids == ids and len(groups[-1].members) < most:
            groups[-1].members.append(number)
        else:
            groups.append(Group(ids, [number]))
    return groups


class Writing:
    """Completions of one call as they grow: which row writes which, what was chosen, what still waits.

    tokens_NT, logprobs_NT: filled up to counts_N. ended_N: True where the last token ends the completion.
    """

    def __init__(
        self,
        session: Session,
        groups: Sequence[Group],
        random_NT: NDArray[np.float64],
        *,
        rows: int,
        rows_together: int,
        temperature: float,
        end_ids: Sequence[int],
        device: torch.device,
    ) -> None:
        self.session, self.waiting, self.random_NT = session, deque(groups), random_NT
        self.rows, self.rows_together = rows, rows_together
        self.temperature, self.device = temperature, device
        self.end_ids = np.array(end_ids, np.int64)
        count, self.length = random_NT.shape
        self.tokens_NT = np.zeros((count, self.length), np.int64)
        self.logprobs_NT = np.zeros((count, self.length), np.float32)
        self.counts_N = np.zeros(count, np.int64)
        self.ended_N = np.zeros(count, bool)
        self.number_B = np.zeros(0, np.int64)
        """Which completion each row writes."""
        self.written_B = np.zeros(0, np.int64)
        self.chosen_B = torch.zeros(0, dtype=torch.long, device=device)
        """The token that each row wrote last."""
        self.unseen: list[tuple[NDArray[np.int64], NDArray[np.int64], Tensor, Tensor]] = []
        self.steps_unseen = STEPS_UNSEEN.get(device.type, 1)

    def run(self) -> None:
        """Write all completions. Raises FloatingPointError where logits are not finite numbers."""
        while self.waiting or len(self.number_B):
            if self._has_room():
                self._append()
            else:
                self._step()
            if len(self.unseen) >= self.steps_unseen or self.written_B.max() == self.length:
                self._look()

    def _has_room(self) -> bool:
        """Whether prompts wait and may join: always in an empty batch, else where it pays."""
        if not self.waiting or not len(self.number_B):
            return bool(self.waiting)
        needed = max(len(self.waiting[0].members), self.rows // WORTH_MOVING)
        return self.session.refills and self.rows - len(self.number_B) >= needed

    def _append(self) -> None:
        """Read as many prompts as there is room for; their rows get their first tokens."""
        room, groups = self.rows - len(self.number_B), []
        while self.waiting and len(self.waiting[0].members) <= room:
            groups.append(self.waiting.popleft())
            room -= len(groups[-1].members)
        counts = [len(group.members) for group in groups]
        states = self.session.append([group.ids for group in groups], counts)
        which_B = torch.from_numpy(np.repeat(np.arange(len(groups)), counts)).to(self.device)
        number_B = np.array([number for group in groups for number in group.members])
        chosen_B = self._write(states[which_B], number_B, np.zeros_like(number_B))
        self.number_B = np.concatenate([self.number_B, number_B])
        self.written_B = np.concatenate([self.written_B, np.ones_like(number_B)])
        self.chosen_B = torch.cat([self.chosen_B, chosen_B])

    def _step(self) -> None:
        states = self.session.step(self.chosen_B)
        self.chosen_B = self._write(states, self.number_B, self.written_B)
        self.written_B = np.minimum(self.written_B + 1, self.length)  # some ended but stand here

    def _write(
        self, states: Tensor, number_B: NDArray[np.int64], place_B: NDArray[np.int64]
    ) -> Tensor:
        """Draw the next token of each row, [B]; `_look` will take it up."""
        random = self.random_NT[number_B, np.minimum(place_B, self.length - 1)]
        place = DRAWN_ON.get(self.device.type, self.device)
        random_B = torch.from_numpy(random).to(place)
        drawn = [
            draw(self.session.logits(states[rows]).to(place), random_B[rows], self.temperature)
            for rows in row_slices(len(number_B), self.rows_together)
        ]
        token_B = torch.cat([token for token, _ in drawn])
        self.unseen.append(
            (number_B, place_B, token_B, torch.cat([logprob for _, logprob in drawn]))
        )
        return token_B.to(self.device)

    def _look(self) -> None:
        """Take up what was drawn, find the rows that ended, and drop them where that pays."""
        drawn = [(n, place, t.cpu().numpy(), p.cpu().numpy()) for n, place, t, p in self.unseen]
        self.unseen = []
        for number_B, place_B, token_B, logprob_B in drawn:
            going_B = self.counts_N[number_B] == 0
            number_B, place_B = number_B[going_B], place_B[going_B]
            self.tokens_NT[number_B, place_B] = token_B[going_B]
            self.logprobs_NT[number_B, place_B] = logprob_B[going_B]
            if not np.isfinite(logprob_B[going_B]).all():
                raise FloatingPointError("logits that are not finite numbers")
            ends_B = (token_B[going_B][:, None] == self.end_ids).any(1)
            over_B = ends_B | (place_B + 1 == self.length)
            self.ended_N[number_B] = ends_B
            self.counts_N[number_B[over_B]] = place_B[over_B] + 1
        going_B = self.counts_N[self.number_B] == 0
        count = int(going_B.sum())
        if count < len(going_B) and (len(going_B) - count) * WORTH_MOVING >= len(going_B):
            rows = np.arange(count)
            rows[~going_B[:count]] = np.flatnonzero(going_B[count:]) + count
            self.session.keep(rows)
            self.number_B, self.written_B = self.number_B[rows], self.written_B[rows]
            self.chosen_B = self.chosen_B[torch.from_numpy(rows).to(self.device)]


def row_slices(count: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover `count`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def context_of(model: Any) -> int:
    """Tokens that the model can read at once; a large number where its config does not say."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return int(limit) if limit else 1 << 30


def check_room(
    prompts: Sequence[PromptText], encoded: Sequence[list[int]], length: int, context: int
) -> None:
    """Raises BadInput for a prompt that leaves no room for `length` tokens in the context."""
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) + length > context:
            raise BadInput(
                f"prompt too long: {len(ids)} tokens and a completion of {length} do not fit the model's context "
                f"of {context}: {str(prompt)[:60]!r}…; shorten the prompt or lower --max_completion_length"
            )


def encode_prompts(tokenizer: Any, prompts: Sequence[PromptText]) -> list[list[int]]:
    """Token ids of each rendered prompt: at least one, so that there is something to continue."""
    rendered = [render_prompt(tokenizer, prompt) for prompt in prompts]
    if not rendered:
        return []
    encoded: list[list[int]] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    templated = [not isinstance(prompt, str) for prompt in prompts]
    first = tokenizer.bos_token_id
    if first is None:
        first = tokenizer.eos_token_id
    if first is None and not all(encoded):
        raise BadInput("an empty prompt needs a tokenizer with a begin or an end token")
    adds_bos = (
        tokenizer.bos_token_id is not None and tokenizer.bos_token_id in tokenizer("a")["input_ids"]
    )
    return [
        ids if ids and (chat or not adds_bos) else [first, *ids]
        for ids, chat in zip(encoded, templated, strict=True)
    ]


def end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a completion: the tokenizer's end token and what the generation config adds."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    if configured is None:
        configured = []
    ids = set(configured if isinstance(configured, list) else [configured])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return sorted(ids)
