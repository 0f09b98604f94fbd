"""Engines: what reads prompts and gives logits of the next token, and the one for any model of transformers.

Owns the protocol between scheduling (`sampler`) and arithmetic. An engine knows no seeds, texts or end tokens.

Letters: B rows being written, P prompts, V vocabulary; states are whatever `logits` turns into logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crestline.models.lora import learns_prompts
from crestline.models.policy import in_eval
from crestline.types import BadInput


class Session(Protocol):
    """The rows of one call: they are appended, step together, and leave in any order."""

    refills: bool
    """Whether prompts may join while other rows are being written."""

    def append(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> Tensor:
        """Read prompts, each of which `counts` new rows continue; the states after each prompt, [P, …]."""
        ...

    def step(self, tokens_B: Tensor) -> Tensor:
        """Give every row its next token; the states after it, [B, …]."""
        ...

    def logits(self, states: Tensor) -> Tensor:
        """Logits [B, V] of the next token."""
        ...

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows only, in this order."""
        ...


class Engine(Protocol):
    """A model made ready for sampling."""

    def refresh(self, model: Any) -> None:
        """Take the model's current weights."""
        ...

    def open(
        self, lengths: Sequence[int], counts: Sequence[int], new_tokens: int, rows: int
    ) -> tuple[Session, int]:
        """Begin a call that will read prompts of these lengths, each continued by `counts` rows.

        Returns the session and how many rows it takes at once, at most `rows`.
        """
        ...


class TransformersEngine:
    """Causal language models by their own forward pass and cache: the reference for the others.

    dtype: bfloat16 computes under autocast; anything else leaves the model its own arithmetic.
    Raises BadInput for a model that keeps no cache, or that padding on the left would mislead.
    """

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        self.model, self.dtype = model, dtype
        check_padding(model)

    def refresh(self, model: Any) -> None:
        self.model = model

    def open(
        self, lengths: Sequence[int], counts: Sequence[int], new_tokens: int, rows: int
    ) -> tuple[Session, int]:
        return TransformersSession(self.model, self.dtype), rows


class TransformersSession:
    """Prompts stand padded on the left, so that all rows grow in step."""

    refills = False

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        self.model, self.low = model, dtype == torch.bfloat16
        self.device = next(model.parameters()).device
        self.cache: Any = None
        self.real_BT = torch.zeros(0, 0, dtype=torch.long, device=self.device)
        """1 at real tokens, 0 at padding."""

    def append(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> Tensor:
        longest = max(map(len, prompts))
        tokens_PT = torch.zeros(len(prompts), longest, dtype=torch.long)
        real_PT = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, ids in enumerate(prompts):
            tokens_PT[row, longest - len(ids) :] = torch.tensor(ids)
            real_PT[row, longest - len(ids) :] = 1
        self.cache, self.real_BT = None, real_PT.to(self.device)
        logits_PV = self._forward(tokens_PT.to(self.device))
        self.keep(np.repeat(np.arange(len(prompts)), counts))
        return logits_PV

    def step(self, tokens_B: Tensor) -> Tensor:
        self.real_BT = torch.cat([self.real_BT, torch.ones_like(self.real_BT[:, :1])], 1)
        return self._forward(tokens_B[:, None])

    def logits(self, states: Tensor) -> Tensor:
        return states

    def keep(self, rows: NDArray[np.int64]) -> None:
        index = torch.from_numpy(rows).to(self.device)
        self.real_BT = self.real_BT[index]
        self.cache.reorder_cache(index)  # recurrent layers have no batch_select_indices

    def _forward(self, tokens_BS: Tensor) -> Tensor:
        positions_BT = (self.real_BT.cumsum(1) - 1).clamp_min(0)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low):
            out = self.model(
                input_ids=tokens_BS,
                attention_mask=self.real_BT,
                position_ids=positions_BT[:, -tokens_BS.shape[1] :],
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self.cache = getattr(out, "past_key_values", None)
        if self.cache is None:
            raise BadInput(f"{kind_of(self.model)} models cannot be sampled: they keep no cache")
        logits_BV: Tensor = out.logits[:, -1]
        return logits_BV


@torch.no_grad()
def check_padding(model: Any) -> None:
    """Raise BadInput unless a padded row goes on from the cache just as it does alone: a probe of three tokens.

    It fails for models that count positions in a way of their own (Bart, Marian, RoBERTa…) or keep no cache (Mamba…).
    """
    kind, device = kind_of(model), next(model.parameters()).device
    if learns_prompts(model):
        raise BadInput("prompt and prefix tuning are not sampled here; use LoRA")
    one, two, three = (n % model.config.get_text_config().vocab_size for n in (5, 6, 7))
    try:
        with in_eval(model):
            session = TransformersSession(model)
            session.append([[one, two, three], [three]], [1, 1])
            found_V = session.step(torch.tensor([one, two], device=device))[1].float()
            alone = torch.tensor([[three, two]], device=device)
            logits_V = model(input_ids=alone).logits[0, -1].float()
    except BadInput:
        raise
    except Exception as error:  # models raise many kinds for arguments that they do not know
        line = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"{kind} models cannot be sampled: {line}") from error
    tolerance = 0.01 if next(model.parameters()).dtype == torch.float32 else 0.1
    if (found_V - logits_V).abs().max() > tolerance * logits_V.abs().max():
        raise BadInput(
            f"{kind} models cannot be sampled: with padding on the left they count positions in their own way"
        )


def kind_of(model: Any) -> str:
    """What config.json calls this kind of model."""
    return str(model.config.model_type)
