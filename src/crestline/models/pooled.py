"""Hidden states at the one token of each text where its score is read: the last layer computes no more.

Owns forward passes with gradients over a packed row, of the Llama family and of encoders built like BERT, written for
few passes over memory; the parameters stay those of the transformers model. Nothing is dropped out. Knows nothing of
heads of reward models. A test compares values and gradients with transformers.
Letters as in `packing`, and: C hidden size, H heads, J key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from crestline.models.blocks import added, projected, rms_normed, rotated, swiglu, turns_of
from crestline.models.llama_family import LlamaFamily, LlamaLayer, in_pairs
from crestline.models.packed_attention import Unsupported, mixed
from crestline.models.packing import Packed
from crestline.models.projection import Projection, projection_of

# ---------------------------------------------------------------- the Llama family


def llama_pooled(
    family: LlamaFamily, row: Packed, dtype: torch.dtype = torch.float32, *, recompute: bool = False
) -> Tensor:
    """After the final norm, [N, C]. dtype: arithmetic of the layers; parameters keep their own.

    recompute: True keeps only each layer's input for the backward pass (activation checkpointing).
    Raises Unsupported where a text is longer than a layer's attention window.
    """
    if any(layer.window is not None and layer.window < row.longest for layer in family.layers):
        raise Unsupported("a text is longer than the model's attention window")
    frequencies = family.inverse_frequencies.to(row.positions_T.device)
    turns = turns_of(row.positions_T[:, None].float() * frequencies, family.rope_scale)
    x_TC = F.embedding(row.tokens_T, family.embedding).to(dtype)
    for layer in family.layers[:-1]:
        x_TC = _called(recompute, _llama_layer, family, layer, x_TC, row, turns, False)
    x_NC = _llama_layer(family, family.layers[-1], x_TC, row, turns, True)
    return rms_normed(x_NC, family.final_norm, family.epsilon)


def _llama_layer(
    family: LlamaFamily,
    layer: LlamaLayer,
    x_TC: Tensor,
    row: Packed,
    turns: Tensor,
    only_read: bool,
) -> Tensor:
    """One layer: at every token, or only where a score is read."""
    layer = in_pairs(layer, family.head_size)
    normed = rms_normed(x_TC, layer.attention_norm, family.epsilon)
    of_queries = turns
    if only_read:
        x_TC, asking = x_TC.index_select(0, row.at_N), normed.index_select(0, row.at_N)
        query, (key, value) = (
            projected(asking, (layer.query,)),
            _parts(normed, layer.key, layer.value),
        )
        of_queries = turns.index_select(0, row.at_N)
    else:
        query, key, value = _parts(normed, layer.query, layer.key, layer.value)
    query, key, value = (x.view(len(x), -1, family.head_size) for x in (query, key, value))
    if layer.query_norm is not None and layer.key_norm is not None:
        query = rms_normed(query, layer.query_norm, family.epsilon)
        key = rms_normed(key, layer.key_norm, family.epsilon)
    if layer.rotates:
        query, key = rotated(query, of_queries), rotated(key, turns)
    taken = mixed(row.read if only_read else row.every, query, key, value)
    x = added(x_TC, taken.flatten(1), layer.attention_output)
    gate_up = projected(rms_normed(x, layer.mlp_norm, family.epsilon), (layer.gate, layer.up))
    return added(x, swiglu(gate_up), layer.down)


def _called(recompute: bool, layer: Callable[..., Tensor], *given: Any) -> Tensor:
    """What a layer gives, its activations kept or computed again."""
    if not recompute:
        return layer(*given)
    found: Tensor = checkpoint(layer, *given, use_reentrant=False)
    return found


def _parts(x_TC: Tensor, *projections: Projection) -> tuple[Tensor, ...]:
    """Several maps of the same input, by one multiplication."""
    return torch.split(projected(x_TC, projections), [len(p.weight) for p in projections], -1)


# ---------------------------------------------------------------- encoders built like BERT

Norm = tuple[Tensor, Tensor, float]
"""Weight, bias and epsilon of a layer norm."""


@dataclass(frozen=True)
class EncoderLayer:
    """The live parameters of one layer; the norms stand behind the residual sums."""

    query: Projection
    key: Projection
    value: Projection
    attention_output: Projection
    attention_norm: Norm
    up: Projection
    activation: Callable[[Tensor], Tensor]
    down: Projection
    norm: Norm


@dataclass(frozen=True)
class Encoder:
    """The live parameters of BERT, RoBERTa and their kin. first_position: number of a text's first place."""

    num_heads: int
    words: Tensor
    positions: Tensor
    first_position: int
    kind: Tensor
    norm: Norm
    layers: tuple[EncoderLayer, ...]


def encoder_of(backbone: Any) -> Encoder:
    """The description of a transformers backbone. Raises AttributeError or ValueError if it is built otherwise.

    It cannot tell every other build: whoever uses it compares scores once.
    """
    embeddings = backbone.embeddings
    padding = embeddings.position_embeddings.padding_idx  # RoBERTa counts from there
    return Encoder(
        num_heads=backbone.config.num_attention_heads,
        words=embeddings.word_embeddings.weight,
        positions=embeddings.position_embeddings.weight,
        first_position=0 if padding is None else padding + 1,
        kind=embeddings.token_type_embeddings.weight[0],
        norm=_norm_of(embeddings.LayerNorm),
        layers=tuple(_layer_of(layer) for layer in backbone.encoder.layer),
    )


def _layer_of(layer: Any) -> EncoderLayer:
    own, output = layer.attention.self, layer.attention.output
    return EncoderLayer(
        query=_linear(own.query),
        key=_linear(own.key),
        value=_linear(own.value),
        attention_output=_linear(output.dense),
        attention_norm=_norm_of(output.LayerNorm),
        up=_linear(layer.intermediate.dense),
        activation=layer.intermediate.intermediate_act_fn,
        down=_linear(layer.output.dense),
        norm=_norm_of(layer.output.LayerNorm),
    )


def _linear(module: Any) -> Projection:
    found = projection_of(module)
    if found is None:
        raise ValueError("a layer is no plain linear map")
    return found


def _norm_of(module: Any) -> Norm:
    return module.weight, module.bias, float(module.eps)


def encoder_pooled(
    encoder: Encoder, row: Packed, dtype: torch.dtype = torch.float32, *, recompute: bool = False
) -> Tensor:
    """At the tokens where scores are read, after the last layer, [N, C]. Arguments as for `llama_pooled`."""
    summed_TC = F.embedding(row.tokens_T, encoder.words) + encoder.kind
    summed_TC = summed_TC + F.embedding(row.positions_T + encoder.first_position, encoder.positions)
    x_TC = _normed(summed_TC.to(dtype), encoder.norm)
    for layer in encoder.layers[:-1]:
        x_TC = _called(recompute, _encoder_layer, encoder, layer, x_TC, row, False)
    return _encoder_layer(encoder, encoder.layers[-1], x_TC, row, True)


def _encoder_layer(
    encoder: Encoder, layer: EncoderLayer, x_TC: Tensor, row: Packed, only_read: bool
) -> Tensor:
    """One layer: at every token, or only where a score is read."""
    if only_read:
        key, value = _parts(x_TC, layer.key, layer.value)
        x_TC = x_TC.index_select(0, row.at_N)
        query = projected(x_TC, (layer.query,))
    else:
        query, key, value = _parts(x_TC, layer.query, layer.key, layer.value)
    heads = [x.view(len(x), encoder.num_heads, -1) for x in (query, key, value)]
    taken = mixed(row.read if only_read else row.every, *heads).flatten(1)
    x = _normed(x_TC + projected(taken, (layer.attention_output,)), layer.attention_norm)
    inner = layer.activation(projected(x, (layer.up,)))
    return _normed(x + projected(inner, (layer.down,)), layer.norm)


def _normed(x: Tensor, norm: Norm) -> Tensor:
    weight, bias, epsilon = norm
    return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), epsilon)
