"""Decoding for GPT-2 from plain tensors.

Owns which GPT-2 models it computes exactly, and the arithmetic of a layer without its attention. Knows nothing of
caches, sampling or text.

Letters: N tokens, C hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crestline.models.decoding import Attend
from crestline.models.kv_cache import CacheShape
from crestline.models.llama_family import answers_itself
from crestline.models.lora import learns_prompts
from crestline.models.matmul import activated_, add_linear_, linear
from crestline.models.projection import Projection, projection_of, without_saving_wrapper
from crestline.models.shadow import Shadow, Weights

ACTIVATIONS: dict[str, Callable[[Tensor], object]] = {
    "gelu_new": partial(torch.ops.aten.gelu_, approximate="tanh"),
    "gelu_pytorch_tanh": partial(torch.ops.aten.gelu_, approximate="tanh"),
    "gelu": torch.ops.aten.gelu_,
    "relu": torch.relu_,
}
"""Elementwise, in place."""


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _Layer:
    attention_norm: _Norm
    query_key_value: Weights
    attention_output: Weights
    mlp_norm: _Norm
    up: Weights
    down: Weights


def is_plain_gpt2(model: Any) -> bool:
    """Whether `Gpt2Decoder` computes exactly what this model (a PeftModel is looked into) computes."""
    if learns_prompts(model):
        return False
    model = _inside(model)
    config = model.config
    if type(model).__name__ != "GPT2LMHeadModel" or not config.scale_attn_weights:
        return False
    if config.scale_attn_by_inverse_layer_idx or config.reorder_and_upcast_attn:
        return False
    if config.add_cross_attention or config.activation_function not in ACTIVATIONS:
        return False
    body = model.transformer
    norms = [body.ln_f, *(norm for block in body.h for norm in (block.ln_1, block.ln_2))]
    if not all(map(answers_itself, norms)):
        return False
    if any(type(block.attn).__name__ != "GPT2Attention" for block in body.h):
        return False
    embeddings = (without_saving_wrapper(body.wte), without_saving_wrapper(body.wpe))
    maps = [m for block in body.h for m in _maps(block)] + [projection_of(model.lm_head)]
    return all(type(e) is nn.Embedding for e in embeddings) and None not in maps


def _inside(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _maps(block: Any) -> list[Projection | None]:
    modules = (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
    return [projection_of(module) for module in modules]


class Gpt2Decoder:
    """A GPT-2 ready to decode; `is_plain_gpt2` must hold.

    dtype: of the products; None takes bfloat16 where that is fast, else the weights' own.
    """

    def __init__(self, model: Any, *, dtype: torch.dtype | None = None) -> None:
        config = _inside(model).config
        self.activation = ACTIVATIONS[config.activation_function]
        self.epsilon = config.layer_norm_epsilon
        self.shadow = Shadow(without_saving_wrapper(_inside(model).transformer.wte).weight, dtype)
        self.activations, self.products = self.shadow.activations, self.shadow.dtype
        self.shape = CacheShape(
            num_heads=config.n_head,
            num_kv_heads=config.n_head,
            head_size=config.n_embd // config.n_head,
            windows=(None,) * config.n_layer,
        )
        self.refresh(model)

    @torch.no_grad()
    def refresh(self, model: Any) -> None:
        if not is_plain_gpt2(model):
            raise ValueError("the model no longer is what the decoder was made for")
        model, shadow = _inside(model), self.shadow
        body = model.transformer
        self.embedding = without_saving_wrapper(body.wte).weight.detach()
        self.positions = without_saving_wrapper(body.wpe).weight.detach()
        self.layers: list[_Layer] = []  # the old copies go first
        self.output = Weights(self.embedding, None)
        self.layers = [self._layer(block) for block in body.h]
        self.final_norm = self._norm_of(body.ln_f)
        self.output = shadow.one(_known(projection_of(model.lm_head)))

    def reach(self, length: int) -> None:
        """Positions have embeddings of their own: nothing to prepare."""

    def hidden(self, tokens_N: Tensor, positions_N: Tensor, attend: Attend) -> Tensor:
        """Hidden states [N, C] after the last norm."""
        positions_N = positions_N.clamp_max(len(self.positions) - 1)  # of rows that ended
        x_NC = F.embedding(tokens_N, self.embedding) + F.embedding(positions_N, self.positions)
        x_NC = x_NC.to(self.activations)
        for number, layer in enumerate(self.layers):
            normed = self._normed(x_NC, layer.attention_norm)
            joined = linear(normed, layer.query_key_value.weight, layer.query_key_value.bias)
            query, key, value = joined.to(self.activations).chunk(3, -1)
            mixed = attend(number, query, key, value)
            add_linear_(x_NC, mixed, layer.attention_output.weight, layer.attention_output.bias)
            normed = self._normed(x_NC, layer.mlp_norm)
            inner = linear(normed, layer.up.weight, layer.up.bias)
            inner = activated_(self.activation, inner)
            add_linear_(x_NC, inner, layer.down.weight, layer.down.bias)
        return self._normed(x_NC, self.final_norm)

    def logits(self, hidden_NC: Tensor) -> Tensor:
        """Logits [N, V]."""
        return linear(hidden_NC, self.output.weight, self.output.bias)

    def _normed(self, x_NC: Tensor, norm: _Norm) -> Tensor:
        return F.layer_norm(x_NC, norm.weight.shape, norm.weight, norm.bias, self.epsilon)

    def _norm_of(self, norm: Any) -> _Norm:
        return _Norm(self.shadow.vector(norm.weight), self.shadow.vector(norm.bias))

    def _layer(self, block: Any) -> _Layer:
        query_key_value, attention_output, up, down = map(_known, _maps(block))
        return _Layer(
            attention_norm=self._norm_of(block.ln_1),
            query_key_value=self.shadow.one(query_key_value),
            attention_output=self.shadow.one(attention_output),
            mlp_norm=self._norm_of(block.ln_2),
            up=self.shadow.one(up),
            down=self.shadow.one(down),
        )


def _known(projection: Projection | None) -> Projection:
    assert projection is not None  # is_plain_gpt2 looked
    return projection
