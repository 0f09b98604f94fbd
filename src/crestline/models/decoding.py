"""Our engine: any decoder that gives hidden states, on a cache that stores each prompt once.

Owns how prompts are read and rows stepped. An architecture (`llama`, `gpt2`) is a `Decoder`; this module knows none.

Letters: N tokens, P prompts of one length, S that length, C hidden size, H heads, J key heads, D head size,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from crestline.models.engines import Session
from crestline.models.kv_cache import COLUMNS, CacheShape, KvCache, shared_length, up_to

TOKENS_READ_TOGETHER = 4096
CACHE_BYTES = 2 << 30
"""Fewer rows are written at once where their own parts of the cache would take more."""
FEWEST_ROWS_AT_ONCE = 16

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries [N, H · D], keys [N, J · D], values [N, J · D]) -> what they take, [N, H · D]."""


class Decoder(Protocol):
    """A model's arithmetic without its attention."""

    shape: CacheShape
    products: torch.dtype
    """Dtype of what is multiplied: weights, and the keys and values that the cache stores."""

    def refresh(self, model: Any) -> None:
        """Take the model's current weights."""
        ...

    def reach(self, length: int) -> None:
        """Be ready for positions below `length`."""
        ...

    def hidden(self, tokens_N: Tensor, positions_N: Tensor, attend: Attend) -> Tensor:
        """Hidden states [N, C] after the last norm."""
        ...

    def logits(self, hidden_NC: Tensor) -> Tensor:
        """Logits [N, V]."""
        ...


class OurEngine:
    """A decoder that serves sessions."""

    def __init__(self, decoder: Decoder, device: torch.device) -> None:
        self.decoder, self.device = decoder, device

    def refresh(self, model: Any) -> None:
        self.decoder.refresh(model)

    def open(
        self, lengths: Sequence[int], counts: Sequence[int], new_tokens: int, rows: int
    ) -> tuple[Session, int]:
        shape, dtype = self.decoder.shape, self.decoder.products
        shared = [shared_length(length) for length in lengths]
        columns = max(lengths[n] - shared[n] for n in range(len(lengths))) + new_tokens
        token_bytes = 2 * len(shape.windows) * shape.num_kv_heads * shape.head_size * dtype.itemsize
        most = max(FEWEST_ROWS_AT_ONCE, CACHE_BYTES // (token_bytes * columns))
        rows = min(rows, most, sum(counts))
        prompts = sum(-(-count // rows) for count, part in zip(counts, shared, strict=True) if part)
        cache = KvCache(
            shape,
            rows=rows,
            own_columns=columns,
            prompts=min(rows, prompts),
            prompt_columns=max(shared),
            dtype=dtype,
            device=self.device,
        )
        self.decoder.reach(max(shared) + up_to(COLUMNS, columns))
        return OurSession(self.decoder, cache), rows


class OurSession:
    """Rows of one call on a decoder and its cache."""

    refills = True

    def __init__(self, decoder: Decoder, cache: KvCache) -> None:
        self.decoder, self.cache = decoder, cache

    def append(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> Tensor:
        lengths_P = np.array([len(ids) for ids in prompts])
        rows_P, place_P = self.cache.append(lengths_P.tolist(), counts)
        padded_P = np.array([up_to(COLUMNS, length) for length in lengths_P])
        states: list[Tensor] = [torch.empty(0)] * len(prompts)
        for length in np.unique(padded_P):
            same = np.flatnonzero(padded_P == length)
            most = max(1, TOKENS_READ_TOGETHER // int(length))
            for part in np.split(same, range(most, len(same), most)):
                read = [prompts[number] for number in part]
                found = self._read(read, int(length), [rows_P[n] for n in part], place_P[part])
                for number, state in zip(part, found, strict=True):
                    states[number] = state
        return torch.stack(states)

    def _read(
        self,
        prompts: Sequence[Sequence[int]],
        length: int,
        rows_P: Sequence[NDArray[np.int64]],
        place_P: NDArray[np.int64],
    ) -> Tensor:
        """States [P, C] after prompts that are padded on the right to one length; the cache stores them."""
        shape, device = self.decoder.shape, self.cache.device
        tokens_PS = torch.zeros(len(prompts), length, dtype=torch.long)
        for row, ids in enumerate(prompts):
            tokens_PS[row, : len(ids)] = torch.tensor(ids)
        last_P = torch.tensor([len(ids) - 1 for ids in prompts], device=device)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            batch = (len(prompts), length, -1, shape.head_size)
            keys, values = key.view(batch), value.view(batch)
            self.cache.store(layer, keys, values, rows_P, place_P)
            return causal(query.view(batch), keys, values, shape.windows[layer]).flatten(0, 1)

        positions_N = torch.arange(length, device=device).repeat(len(prompts))
        hidden_NC = self.decoder.hidden(tokens_PS.flatten().to(device), positions_N, attend)
        hidden_PSC = hidden_NC.view(len(prompts), length, -1)
        return hidden_PSC[torch.arange(len(prompts), device=device), last_P]

    def step(self, tokens_B: Tensor) -> Tensor:
        return self.decoder.hidden(tokens_B, self.cache.advance(), self.cache.attend)

    def logits(self, states: Tensor) -> Tensor:
        return self.decoder.logits(states)

    def keep(self, rows: NDArray[np.int64]) -> None:
        self.cache.keep(rows)


def causal(query_PSHD: Tensor, key_PSJD: Tensor, value_PSJD: Tensor, window: int | None) -> Tensor:
    """What each token takes from those up to it, at most `window` of them: [P, S, H · D]."""
    length, shared = query_PSHD.shape[1], query_PSHD.shape[2] // key_PSJD.shape[2]
    mask = None
    if window is not None and window < length:
        place = torch.arange(length, device=query_PSHD.device)
        distance = place[:, None] - place
        mask = (distance >= 0) & (distance < window)
    mixed = F.scaled_dot_product_attention(
        query_PSHD.transpose(1, 2),
        key_PSJD.repeat_interleave(shared, 2).transpose(1, 2),
        value_PSJD.repeat_interleave(shared, 2).transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
    )
    return mixed.transpose(1, 2).flatten(2)
