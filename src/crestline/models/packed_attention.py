"""Attention over a packed row, for any model of transformers that lets its attention be chosen.

Owns the attention function and its being switched on for one call. Knows nothing of texts, heads of models and scores.
Letters as in `packing`, and: H heads, D size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from crestline.models.blocks import applied
from crestline.models.packing import Group, Packed, View

NAME = "crestline_packed"
WITHOUT_EFFECT = ("use_cache", "position_ids", "output_attentions", "output_hidden_states")
"""Arguments that models hand on to attention and that mean nothing to it."""
MOST_CELLS = 384 * 384
"""Queries times keys of a text up to which our attention is faster, and the weights that it keeps are small."""


class Unsupported(ValueError):
    """The model wants something of attention that the packed one does not do."""


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """The model attends over the row that is given to it as `packed`, while the block runs."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    before = [(config, config._attn_implementation) for config in configs]
    try:
        for config, _ in before:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Packed | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **wanted: Any,
) -> tuple[Tensor, None]:
    """What each token of the row takes from those that it sees, [1, T, H, D].

    query: [1, H, T, D]; key, value: [1, H / n, T, D]. Raises Unsupported where the model wants more than that.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if packed is None or attention_mask is not None or causal != packed.is_causal:
        raise Unsupported("no packed row, or one for another kind of attention")
    if sliding_window is not None and sliding_window < packed.longest:
        raise Unsupported("a text is longer than the model's attention window")
    if any(v is not None and name not in WITHOUT_EFFECT for name, v in wanted.items()):
        raise Unsupported(f"attention with {', '.join(wanted)}")
    found = mixed(packed.every, *map(_rows, (query, key, value)), scaling=scaling, dropout=dropout)
    return found[None], None


def _rows(x: Tensor) -> Tensor:
    """[1, heads, T, D] as [T, heads, D]."""
    return x[0].transpose(0, 1)


def mixed(
    view: View,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """What each query of the view takes from the tokens that it sees, [queries, H, D].

    query: [queries, H, D]; key, value: [T, H / n, D]. scaling: of the products; D ** -0.5 by default.
    """
    heads, size = query.shape[1:]
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    low = query.device.type == "cpu" and query.dtype != torch.float32
    num_queries = [group.num_blocks * group.num_queries for group in view.groups]
    num_keys = [group.num_blocks * group.num_keys for group in view.groups]
    slots = (
        _slots(query, view.queries, num_queries),
        _slots(key, view.keys, num_keys),
        _slots(value, view.keys, num_keys),
    )
    taken = []
    for group, *flat in zip(view.groups, *slots, strict=True):
        q, k, v = (x.view(group.num_blocks, -1, *x.shape[1:]).transpose(1, 2) for x in flat)
        if k.shape[1] < heads:
            k, v = (x.repeat_interleave(heads // k.shape[1], 1) for x in (k, v))
        if low and trains and not dropout and group.num_queries * group.num_keys <= MOST_CELLS:
            scale = size**-0.5 if scaling is None else scaling
            found = applied(_Attention, q, k, v, _hidden(group, q.device), scale)
        else:
            found = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=group.mask_BQL,
                dropout_p=dropout,
                is_causal=group.is_causal,
                scale=scaling,
            )
        taken.append(found.transpose(1, 2).reshape(-1, heads * size))
    return torch.cat(taken).index_select(0, view.slots).view(-1, heads, size)


def _hidden(group: Group, device: torch.device) -> Tensor | None:
    """True where a query does not see a key, [B or 1, 1, Q, L]; None where every one sees all."""
    if group.mask_BQL is not None:
        return ~group.mask_BQL
    if not group.is_causal:
        return None
    sees = torch.ones(group.num_queries, group.num_keys, dtype=torch.bool, device=device).tril()
    return ~sees[None, None]


class _Attention(torch.autograd.Function):
    """Plain attention that keeps its weights, for the backward pass of short texts in low precision on a CPU, where
    torch's own takes one and a half to four times as long. Scores are rounded before the softmax, as torch's are not.

    query: [B, H, Q, D]; key, value: [B, H, L, D].
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, scale: float
    ) -> Tensor:
        scores = (query * scale) @ key.transpose(-1, -2)
        if hidden is not None:
            scores.masked_fill_(hidden, float("-inf"))
        weights = scores.softmax(-1)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale = scale
        return weights @ value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, weights = ctx.saved_tensors
        of_value = weights.transpose(-1, -2) @ grad
        toward = grad @ value.transpose(-1, -2)
        scores = torch._softmax_backward_data(toward, weights, -1, weights.dtype)
        of_query = (scores @ key).mul_(ctx.scale)
        of_key = (scores.transpose(-1, -2) @ query).mul_(ctx.scale)
        return of_query, of_key, of_value, None, None


def _slots(x: Tensor, places: Tensor, counts: list[int]) -> list[Tensor]:
    """Rows of x at these places, [slots of a group, heads, D] for each group."""
    flat = x.flatten(1).index_select(0, places).view(-1, *x.shape[1:])
    return list(torch.split(flat, counts))


AttentionInterface.register(NAME, attend)
