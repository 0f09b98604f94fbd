"""Which engine serves a model. Owns the choice alone."""

from __future__ import annotations

from typing import Any

import torch

from crestline.models.decoding import Decoder, OurEngine
from crestline.models.engines import Engine, TransformersEngine
from crestline.models.gpt2 import Gpt2Decoder, is_plain_gpt2
from crestline.models.llama import LlamaDecoder
from crestline.models.llama_family import family_of
from crestline.types import BadInput


def engine_of(model: Any, kind: str = "auto", *, dtype: torch.dtype | None = None) -> Engine:
    """The engine of that kind: "ours", "transformers", or "auto" for ours where it computes the model exactly.

    Raises BadInput where ours is asked for and does not, and for an unknown kind.
    """
    if kind not in ("auto", "ours", "transformers"):
        raise BadInput(f"--sampler {kind}: choose auto, ours, transformers or vllm")
    decoder = None if kind == "transformers" else decoder_of(model, dtype=dtype)
    if decoder is not None:
        return OurEngine(decoder, next(model.parameters()).device)
    if kind == "ours":
        raise BadInput(
            f"--sampler ours does not decode this {type(model).__name__}; use --sampler auto or transformers"
        )
    return TransformersEngine(model, dtype)


def decoder_of(model: Any, *, dtype: torch.dtype | None = None) -> Decoder | None:
    """Our decoder of the model, or None where we have none that computes exactly what it computes."""
    family = family_of(model)
    if family is not None:
        return LlamaDecoder(family, dtype=dtype)
    return Gpt2Decoder(model, dtype=dtype) if is_plain_gpt2(model) else None
