"""What a policy says of given tokens: logits at chosen places, without the rest of the vocabulary cube.

Letters: N completions, T tokens, S chosen places (rows of a mask, in order), V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SHAPED_AFTER_THE_OUTPUT_LAYER = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "logits_scaling",
    "logit_scale",
    "lm_head_multiplier",
)
"""Settings of Gemma, RecurrentGemma, Granite, Cohere and Falcon-H1 that change what the output layer gave."""


def logits_before(model: Any, tokens_NT: Tensor, attention_NT: Tensor, chosen_NT: Tensor) -> Tensor:
    """Logits [S, V] from which each chosen token was predicted.

    tokens_NT: ids, padded on the right. attention_NT: 1 at real tokens. chosen_NT: True at the tokens asked about;
    never the first of a row. Only these places pass through the output layer.
    """
    if bool(chosen_NT[:, 0].any()):
        raise ValueError("the first token of a row has nothing before it that could predict it")
    before_NT = chosen_NT[:, 1:]
    inputs = {"input_ids": tokens_NT[:, :-1], "attention_mask": attention_NT[:, :-1]}
    if any(getattr(model.config, name, None) for name in SHAPED_AFTER_THE_OUTPUT_LAYER):
        logits: Tensor = model(**inputs, use_cache=False).logits[before_NT]
        return logits
    hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[before_NT])
    return logits


def chosen_logprobs(logits_SV: Tensor, chosen_S: Tensor) -> Tensor:
    """Log-probability [S], in nats, of each chosen id under its logits."""
    picked_S = logits_SV.float().gather(1, chosen_S[:, None])[:, 0]
    return picked_S - torch.logsumexp(logits_SV.float(), 1)
