"""Decoding for the Llama family from plain tensors.

Owns the arithmetic of a layer without its attention. Knows nothing of caches, sampling or text. Matches transformers'
own forward pass within rounding (a test compares each member of the family).

Letters: N tokens, C hidden size, H heads, J key heads, D head size, F feed-forward size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crestline.models.decoding import Attend
from crestline.models.kv_cache import CacheShape
from crestline.models.llama_family import LlamaFamily, LlamaLayer, family_of
from crestline.models.matmul import activated_, add_linear_, linear, rms_normed_rows
from crestline.models.shadow import Shadow, Weights, project_into


@dataclass(frozen=True)
class _Layer:
    attention_norm: Tensor
    query_key_value: tuple[Weights, ...]
    query_norm: Tensor | None
    key_norm: Tensor | None
    attention_output: Weights
    mlp_norm: Tensor
    gate_up: tuple[Weights, ...]
    down: Weights
    rotates: bool


class _Planes:
    """Room for the queries [N, H · D], keys and values [N, J · D] of a layer, one after the other.

    turned: rows of queries, then of keys, [N · (H + J), D]: what is rotated.
    """

    def __init__(self, x_NC: Tensor, shape: CacheShape) -> None:
        self.counts = (shape.num_heads, shape.num_kv_heads)
        rows, size = len(x_NC), shape.head_size
        sizes = [rows * heads * size for heads in (*self.counts, shape.num_kv_heads)]
        whole = x_NC.new_empty(sum(sizes))
        query, key, value = torch.split(whole, sizes)
        self.parts = (query.view(rows, -1), key.view(rows, -1), value.view(rows, -1))
        self.query_heads, self.key_heads = query.view(-1, size), key.view(-1, size)
        self.turned = whole[: sizes[0] + sizes[1]].view(-1, size)

    def turns_of(self, positions_N: Tensor) -> Tensor:
        """The position of each row of `turned`."""
        return torch.cat([positions_N.repeat_interleave(count) for count in self.counts])


class LlamaDecoder:
    """A model of the family, ready to decode.

    dtype: of the products; None takes bfloat16 where that is fast, else the weights' own.
    """

    def __init__(self, family: LlamaFamily, *, dtype: torch.dtype | None = None) -> None:
        self.shadow = Shadow(family.embedding, dtype)
        self.activations, self.products = self.shadow.activations, self.shadow.dtype
        self.shape = CacheShape(
            num_heads=family.num_heads,
            num_kv_heads=family.num_kv_heads,
            head_size=family.head_size,
            windows=tuple(layer.window for layer in family.layers),
        )
        self.turns_TD = (torch.empty(0), torch.empty(0))
        self._take(family)

    def refresh(self, model: Any) -> None:
        family = family_of(model)
        if family is None:
            raise ValueError("the model no longer is what the decoder was made for")
        self._take(family)

    @torch.no_grad()
    def _take(self, family: LlamaFamily) -> None:
        shadow = self.shadow
        self.family = family
        self.layers: list[_Layer] = []  # the old copies go first
        self.output = Weights(family.embedding, None)
        self.layers = [self._layer(layer) for layer in family.layers]
        self.final_norm = shadow.vector(family.final_norm)
        self.output = shadow.one(family.output)

    def _layer(self, layer: LlamaLayer) -> _Layer:
        shadow = self.shadow
        norms = (layer.query_norm, layer.key_norm)
        query_norm, key_norm = (None if n is None else shadow.vector(n) for n in norms)
        attention = (layer.query, layer.key, layer.value)
        return _Layer(
            attention_norm=shadow.vector(layer.attention_norm),
            query_key_value=shadow.joined(attention),
            query_norm=query_norm,
            key_norm=key_norm,
            attention_output=shadow.one(layer.attention_output),
            mlp_norm=shadow.vector(layer.mlp_norm),
            gate_up=shadow.joined((layer.gate, layer.up)),
            down=shadow.one(layer.down),
            rotates=layer.rotates,
        )

    def hidden(self, tokens_N: Tensor, positions_N: Tensor, attend: Attend) -> Tensor:
        """Hidden states [N, C] after the last norm."""
        x_NC = F.embedding(tokens_N, self.family.embedding).to(self.activations)
        planes = _Planes(x_NC, self.shape)
        cos, sin = (table.index_select(0, planes.turns_of(positions_N)) for table in self.turns_TD)
        for number, layer in enumerate(self.layers):
            normed = self._norm(x_NC, layer.attention_norm)
            project_into(planes.parts, normed, layer.query_key_value)
            if layer.query_norm is not None and layer.key_norm is not None:
                planes.query_heads.copy_(self._norm(planes.query_heads, layer.query_norm))
                planes.key_heads.copy_(self._norm(planes.key_heads, layer.key_norm))
            if layer.rotates:
                other = planes.turned.roll(self.shape.head_size // 2, -1)
                torch.addcmul(planes.turned * cos, other, sin, out=planes.turned)
            mixed = attend(number, *planes.parts)
            add_linear_(x_NC, mixed, layer.attention_output.weight, layer.attention_output.bias)
            add_linear_(x_NC, self._feed(layer, x_NC), layer.down.weight, layer.down.bias)
        return self._norm(x_NC, self.final_norm)

    def logits(self, hidden_NC: Tensor) -> Tensor:
        """Logits [N, V]."""
        return linear(hidden_NC, self.output.weight, self.output.bias)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_normed_rows(x, weight, self.family.epsilon)

    def reach(self, length: int) -> None:
        """Be ready for positions below `length`."""
        if len(self.turns_TD[0]) >= length:
            return
        frequencies = self.family.inverse_frequencies.float()
        angles = torch.arange(length, device=frequencies.device).float()[:, None] * frequencies
        cos, sin = angles.cos() * self.family.rope_scale, angles.sin() * self.family.rope_scale
        tables = (torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1))
        self.turns_TD = (tables[0].to(self.activations), tables[1].to(self.activations))

    def _feed(self, layer: _Layer, x_NC: Tensor) -> Tensor:
        """What goes through the feed-forward's last map, [N, F]."""
        normed = self._norm(x_NC, layer.mlp_norm)
        if len(layer.gate_up) == 1:
            whole = layer.gate_up[0]
            gate, up = linear(normed, whole.weight, whole.bias).chunk(2, -1)
        else:
            gate, up = (linear(normed, part.weight, part.bias) for part in layer.gate_up)
        return activated_(torch.ops.aten.silu_, gate).mul_(up)
