"""Sample completions from a policy, recording tokens, log-probabilities and why each stopped.

Owns sampling. Each completion has its own random stream, a function of its seed and the token's position, so
that nothing but its seed, prompt and weights decides what it says. Text in, `Completion` out.

Letters: B rows still writing, T completion tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crestline.models.llama import LlamaDecoder, is_supported
from crestline.models.text import render_prompt
from crestline.types import BadInput, Completion, PromptText


def uniforms(seeds: Sequence[int], length: int) -> NDArray[np.float64]:
    """Random numbers in [0, 1), float64 [N, length]: row i is a function of seeds[i] alone.

    Source: SplitMix64 (Steele, Lea and Flood 2014), its i-th output for each seed.

    >>> bool((uniforms([7], 3)[0] == uniforms([1, 7], 5)[1, :3]).all())
    True
    """
    seeds_N = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = _mixed(seeds_N)[:, None] + np.arange(1, length + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = _mixed(z)
    return (z >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


SHRINK_BELOW = 0.7
"""Finished rows leave the batch when less than this share still writes: copying the cache costs too."""


class _LlamaEngine:
    """One batch on `LlamaDecoder`; prompts are padded on the left so that rows grow in step."""

    def __init__(self, decoder: LlamaDecoder, batch: int, length: int) -> None:
        self.decoder = decoder
        self.cache = decoder.new_cache(batch, length)
        self.filled = 0

    def __call__(self, tokens_BS: Tensor, real_BL: Tensor) -> Tensor:
        new = tokens_BS.shape[1]
        stop = self.filled + new
        real = real_BL[:, :stop]
        positions = (real.long().cumsum(1) - 1).clamp_min(0)[:, self.filled :]
        column = torch.arange(stop, device=real.device)
        seen = real[:, None, :] & (column[None, None, :] <= column[self.filled :][None, :, None])
        seen = seen | (column[None, None, :] == column[self.filled :][None, :, None])
        bias = torch.zeros(seen.shape, device=real.device).masked_fill(~seen, float("-inf"))
        logits = self.decoder(tokens_BS, positions, self.cache, self.filled, bias)
        self.filled = stop
        return logits

    def keep(self, rows: Tensor) -> None:
        self.cache = [(keys[rows], values[rows]) for keys, values in self.cache]


class _TransformersEngine:
    """One batch on any causal language model of transformers, with its own cache."""

    def __init__(self, model: Any) -> None:
        self.model, self.filled = model, 0
        self.cache: Any = None

    def __call__(self, tokens_BS: Tensor, real_BL: Tensor) -> Tensor:
        stop = self.filled + tokens_BS.shape[1]
        real = real_BL[:, :stop]
        out = self.model(
            input_ids=tokens_BS,
            attention_mask=real.long(),
            position_ids=(real.long().cumsum(1) - 1).clamp_min(0)[:, self.filled :],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache, self.filled = out.past_key_values, stop
        logits: Tensor = out.logits[:, -1]
        return logits

    def keep(self, rows: Tensor) -> None:
        if self.cache is not None:
            self.cache.batch_select_indices(rows)


class PolicySampler:
    """Samples from a policy that lives in this process.

    max_completion_length: tokens. temperature: above 0. batch_size: completions decoded together.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_completion_length: int,
        temperature: float = 1.0,
        batch_size: int = 512,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_completion_length, self.temperature = max_completion_length, temperature
        self.batch_size = batch_size
        self.end_ids = end_token_ids(model, tokenizer)
        self.decoder = LlamaDecoder(model) if is_supported(model) else None
        limit = getattr(model.config, "max_position_embeddings", None)
        self.context = int(limit) if limit else 1 << 30

    def refresh(self) -> None:
        """Take the model's current weights; call after every update."""
        if self.decoder:
            self.decoder.refresh(self.model)

    def encode(self, prompts: Sequence[PromptText]) -> list[list[int]]:
        """Token ids of each rendered prompt. Raises BadInput for one that leaves no room for a completion."""
        encoded = encode_prompts(self.tokenizer, prompts)
        for prompt, ids in zip(prompts, encoded, strict=True):
            if len(ids) + self.max_completion_length > self.context:
                raise BadInput(
                    f"prompt too long: {len(ids)} tokens and a completion of {self.max_completion_length} do not "
                    f"fit the model's context of {self.context}: {str(prompt)[:60]!r}…; shorten the prompt or "
                    "lower --max_completion_length"
                )
        return encoded

    @torch.no_grad()
    def sample(self, prompts: Sequence[PromptText], seeds: Sequence[int]) -> list[Completion]:
        """One completion for each prompt; seeds[i] names its random stream."""
        encoded = self.encode(prompts)
        was_training = self.model.training
        self.model.eval()
        completions: list[Completion] = []
        for start in range(0, len(encoded), self.batch_size):
            part = slice(start, start + self.batch_size)
            completions += self._batch(encoded[part], seeds[part])
        self.model.train(was_training)
        return completions

    def _batch(self, prompts: list[list[int]], seeds: Sequence[int]) -> list[Completion]:
        device = next(self.model.parameters()).device
        longest, length = max(map(len, prompts)), self.max_completion_length
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        real = torch.ones(len(prompts), longest + length, dtype=torch.bool)
        for row, ids in enumerate(prompts):
            tokens[row, longest - len(ids) :] = torch.tensor(ids)
            real[row, : longest - len(ids)] = False
        tokens, real = tokens.to(device), real.to(device)
        random = torch.from_numpy(uniforms(seeds, length)).to(device)
        engine: _LlamaEngine | _TransformersEngine = (
            _LlamaEngine(self.decoder, len(prompts), longest + length)
            if self.decoder
            else _TransformersEngine(self.model)
        )
        ends = torch.tensor(self.end_ids, device=device)
        rows = torch.arange(len(prompts), device=device)
        alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
        chosen_NT = torch.zeros(len(prompts), length, dtype=torch.long, device=device)
        logprob_NT = torch.zeros(len(prompts), length, device=device)
        counts = torch.full((len(prompts),), length, device=device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        new = tokens
        for t in range(length):
            logprobs_BV = (engine(new, real).float() / self.temperature).log_softmax(-1)
            chosen = _inverse_cdf(logprobs_BV, random[:, t])
            chosen_NT[rows, t] = chosen
            logprob_NT[rows, t] = logprobs_BV.gather(1, chosen[:, None])[:, 0]
            done = alive & (chosen[:, None] == ends).any(1)
            counts[rows[done]] = t + 1
            ended[rows[done]] = True
            alive = alive & ~done
            if not alive.any():
                break
            if float(alive.float().mean()) < SHRINK_BELOW:
                left = alive.nonzero()[:, 0]
                rows, random, real, chosen = rows[left], random[left], real[left], chosen[left]
                alive = alive[left]
                engine.keep(left)
            new = chosen[:, None]
        return self._completions(chosen_NT, logprob_NT, counts, ended)

    def _completions(
        self, chosen_NT: Tensor, logprob_NT: Tensor, counts_N: Tensor, ended_N: Tensor
    ) -> list[Completion]:
        found = []
        for tokens, logprobs, count, ended in zip(
            chosen_NT.tolist(),
            logprob_NT.tolist(),
            counts_N.tolist(),
            ended_N.tolist(),
            strict=True,
        ):
            said = tokens[: count - 1] if ended else tokens[:count]
            found.append((tokens[:count], logprobs[:count], said, ended))
        texts = self.tokenizer.batch_decode(
            [said for _, _, said, _ in found], skip_special_tokens=True
        )
        return [
            Completion(
                text=text,
                tokens=tuple(tokens),
                logprobs=tuple(logprobs),
                stop="end" if ended else "length",
            )
            for text, (tokens, logprobs, _, ended) in zip(texts, found, strict=True)
        ]


def _inverse_cdf(logprobs_BV: Tensor, random_B: Tensor) -> Tensor:
    """The token at which the cumulated probability passes the random number, [B]."""
    cumulated_BV = logprobs_BV.exp().cumsum(-1, dtype=torch.float64)
    wanted_B = random_B * cumulated_BV[:, -1]
    found_B = torch.searchsorted(cumulated_BV, wanted_B[:, None], right=True)[:, 0]
    return found_B.clamp_max(logprobs_BV.shape[1] - 1)


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
