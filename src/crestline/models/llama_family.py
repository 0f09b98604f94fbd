"""The Llama family as plain tensors: one description that decoding and training both read.

Owns which models are of the family (Llama, Qwen2, Qwen3, Mistral, SmolLM3) and where their parameters are. What the
description cannot say (another activation, rotary angles that change with the length, quantised layers…) is declined
with None, and transformers' own forward pass serves.

Letters: C hidden size, D head size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from crestline.models.lora import learns_prompts
from crestline.models.projection import Projection, projection_of, without_saving_wrapper

FAMILY = tuple(
    f"{name}{task}"
    for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3")
    for task in ("ForCausalLM", "ForSequenceClassification")
)
FIXED_ROPE = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose angles depend on the position alone."""


@dataclass(frozen=True)
class LlamaLayer:
    """The live parameters of one layer.

    attention_norm, mlp_norm: [C]. query_norm, key_norm: [D], over each head (Qwen3).
    rotates: whether queries and keys are rotated. window: tokens that a token may look at, itself included.
    """

    attention_norm: Tensor
    query: Projection
    key: Projection
    value: Projection
    query_norm: Tensor | None
    key_norm: Tensor | None
    attention_output: Projection
    mlp_norm: Tensor
    gate: Projection
    up: Projection
    down: Projection
    rotates: bool
    window: int | None


def in_pairs(layer: LlamaLayer, head_size: int) -> LlamaLayer:
    """The layer with what is rotated together side by side: outputs i and i + D / 2 of each head as 2 i and 2 i + 1.

    Queries and keys change alike, so their products stay the same. Gradients flow through it. A layer that does not
    rotate is returned as it is.
    """
    if not layer.rotates:
        return layer

    def rows(x: Tensor) -> Tensor:
        return x.reshape(-1, 2, head_size // 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)

    return replace(
        layer,
        query=layer.query.reordered(rows),
        key=layer.key.reordered(rows),
        query_norm=None if layer.query_norm is None else rows(layer.query_norm),
        key_norm=None if layer.key_norm is None else rows(layer.key_norm),
    )


@dataclass(frozen=True)
class LlamaFamily:
    """The live parameters of a model and the numbers that are not parameters.

    inverse_frequencies: [D / 2] float32, radians a token. rope_scale: what cos and sin are multiplied by.
    epsilon: of every norm. Attention weights are scaled by D ** -0.5; the activation is SiLU.
    embedding: [V, C]; output.weight is the same tensor where the two are tied. output: the language model's, or the
    head of a reward model.
    """

    num_heads: int
    num_kv_heads: int
    head_size: int
    epsilon: float
    inverse_frequencies: Tensor
    rope_scale: float
    embedding: Tensor
    layers: tuple[LlamaLayer, ...]
    final_norm: Tensor
    output: Projection


def family_of(model: Any) -> LlamaFamily | None:
    """The description of a language or reward model (a PeftModel is looked into), or None if it is not of the family.

    It holds the live parameters, so optimiser steps show; ask again after adapters were switched or merged.
    """
    if learns_prompts(model):
        return None
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    known = type(model).__module__.startswith("transformers.") and type(model).__name__ in FAMILY
    if not known or model.config.hidden_act != "silu":
        return None
    config, inside = model.config, model.model
    rope, embedding = inside.rotary_emb, without_saving_wrapper(inside.embed_tokens)
    head_size = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    output = projection_of(model.lm_head if hasattr(model, "lm_head") else model.score)
    if rope.rope_type not in FIXED_ROPE or rope.inv_freq.shape[0] * 2 != head_size:
        return None
    layers = [_layer_of(layer) for layer in inside.layers]
    if not answers_itself(inside.norm):
        return None
    if type(embedding) is not nn.Embedding or output is None or None in layers:
        return None
    return LlamaFamily(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_size=head_size,
        epsilon=config.rms_norm_eps,
        inverse_frequencies=rope.inv_freq,
        rope_scale=float(rope.attention_scaling),
        embedding=embedding.weight,
        layers=tuple(layer for layer in layers if layer is not None),
        final_norm=inside.norm.weight,
        output=output,
    )


def answers_itself(norm: nn.Module) -> bool:
    """Whether a norm computes with its own weights: LN tuning puts another layer in its place."""
    return not type(norm).__module__.startswith("peft.tuners")


def _layer_of(layer: Any) -> LlamaLayer | None:
    attention, mlp = layer.self_attn, layer.mlp
    projections = {
        "query": projection_of(attention.q_proj),
        "key": projection_of(attention.k_proj),
        "value": projection_of(attention.v_proj),
        "attention_output": projection_of(attention.o_proj),
        "gate": projection_of(mlp.gate_proj),
        "up": projection_of(mlp.up_proj),
        "down": projection_of(mlp.down_proj),
    }
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    if None in projections.values() or not all(map(answers_itself, norms)):
        return None
    window = getattr(attention, "sliding_window", None)
    if type(attention).__name__ == "MistralAttention":  # every layer reads it from the config
        window = attention.config.sliding_window
    return LlamaLayer(
        attention_norm=layer.input_layernorm.weight,
        query_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        key_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        mlp_norm=layer.post_attention_layernorm.weight,
        rotates=bool(getattr(attention, "use_rope", True)),
        window=window,
        **projections,  # type: ignore[arg-type]
    )
