"""Hidden states of the Llama family over a tree of tokens, for training: no padding, each prompt once, few passes.

Owns one forward pass with gradients, written for little memory traffic; the parameters stay those of the
transformers model, so every optimiser and every save sees them. A test compares values and gradients with
transformers. Attention weights are kept for the backward pass: micro-batches bound their memory.

Letters as in `tree`, and: C hidden size, H heads, J key heads, D head size, F feed-forward size, L keys of a row.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from crestline.models.blocks import added, applied, projected, rms_normed, swiglu, turned, turns_of
from crestline.models.llama_family import LlamaFamily, LlamaLayer, in_pairs
from crestline.models.tree import Rows, Tree


def fits_window(family: LlamaFamily, tree: Tree) -> bool:
    """Whether every layer looks at whole rows; `tree_hidden` knows no shorter windows."""
    longest = int(tree.positions_S.max()) + 1
    return all(layer.window is None or layer.window >= longest for layer in family.layers)


def tree_hidden(
    family: LlamaFamily, tree: Tree, *, dtype: torch.dtype = torch.float32, recompute: bool = False
) -> Tensor:
    """Hidden states after the final norm at every token of the tree, [S, C].

    dtype: arithmetic of the layers; parameters and their gradients keep their own. recompute: True keeps only each
    layer's input for the backward pass (activation checkpointing). Raises ValueError where `fits_window` says no.
    """
    if not fits_window(family, tree):
        raise ValueError("a row is longer than the model's attention window")
    frequencies = family.inverse_frequencies.to(tree.positions_S.device)
    turns = turns_of(tree.positions_S[:, None].float() * frequencies, family.rope_scale)
    biases = _biases(tree, dtype)
    x_SC = F.embedding(tree.tokens_S, family.embedding).to(dtype)
    for layer in family.layers:
        given = (family, layer, x_SC, turns if layer.rotates else None, tree, biases)
        x_SC = checkpoint(_layer, *given, use_reentrant=False) if recompute else _layer(*given)
    return rms_normed(x_SC, family.final_norm, family.epsilon)


def _layer(
    family: LlamaFamily,
    layer: LlamaLayer,
    x_SC: Tensor,
    turns: Tensor | None,
    tree: Tree,
    biases: tuple[Tensor, Tensor | None],
) -> Tensor:
    layer = in_pairs(layer, family.head_size)
    mixed = _attention(family, layer, x_SC, turns, tree, biases)
    x_SC = added(x_SC, mixed, layer.attention_output)
    normed = rms_normed(x_SC, layer.mlp_norm, family.epsilon)
    gate_up = projected(normed, (layer.gate, layer.up))
    return added(x_SC, swiglu(gate_up), layer.down)


def _biases(tree: Tree, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """What is added to attention scores: causal [W, W], W the wider of prompts and completions; and -inf for padded
    prompt keys, [G, 1, 1, P], or None where all prompts are equally long."""
    device = tree.tokens_S.device
    places_GP = tree.prompts.place_RW
    width = max(places_GP.shape[1], tree.completions.place_RW.shape[1])
    causal_WW = torch.full((width, width), float("-inf"), dtype=dtype, device=device).triu(1)
    if tree.prompts.is_full:
        return causal_WW, None
    column_P = torch.arange(places_GP.shape[1], device=device)
    bias_GP = torch.zeros(places_GP.shape, dtype=dtype, device=device)
    bias_GP.masked_fill_(column_P >= tree.prompts.lengths_R[:, None], float("-inf"))
    return causal_WW, bias_GP[:, None, None]


def _attention(
    family: LlamaFamily,
    layer: LlamaLayer,
    x_SC: Tensor,
    turns: Tensor | None,
    tree: Tree,
    biases: tuple[Tensor, Tensor | None],
) -> Tensor:
    """What each token takes from those before it, [S, H · D], before the output projection."""
    normed = rms_normed(x_SC, layer.attention_norm, family.epsilon)
    joined = projected(normed, (layer.query, layer.key, layer.value))
    heads, kv_heads, size = family.num_heads, family.num_kv_heads, family.head_size
    joined_SHD = joined.view(-1, heads + 2 * kv_heads, size)
    if layer.query_norm is not None and layer.key_norm is not None:
        query, key, value = torch.split(joined_SHD, [heads, kv_heads, kv_heads], 1)
        query = rms_normed(query, layer.query_norm, family.epsilon)
        key = rms_normed(key, layer.key_norm, family.epsilon)
        joined_SHD = torch.cat([query, key, value], 1)
    mixed = applied(_TreeAttention, joined_SHD, turns, tree, biases, heads, kv_heads)
    return mixed.view(-1, heads * size)


class _Heads:
    """Moves between flat tokens and rectangles with heads first, where queries of one key head stand together.

    A rectangle of queries is [R, J, H / J · W, D], of keys and values [R, J, W, D].
    """

    def __init__(self, tree: Tree, heads: int, kv_heads: int) -> None:
        self.tree, self.kv_heads, self.shared = tree, kv_heads, heads // kv_heads

    def split(self, x_SHD: Tensor, rows: Rows, *, zeros: bool = False) -> Tensor:
        x = rows.padded(x_SHD, zeros=zeros)
        num_rows, width, heads, size = x.shape
        if heads == self.kv_heads:
            return x.transpose(1, 2)
        x = x.view(num_rows, width, self.kv_heads, self.shared, size)
        x = x.permute(0, 2, 3, 1, 4)
        return x.reshape(num_rows, self.kv_heads, self.shared * width, size)

    def joined(self, x: Tensor, rows: Rows, *, of_queries: bool) -> Tensor:
        """Back to flat tokens: [tokens of the rows, H or J, D]."""
        (num_rows, width), shared = rows.place_RW.shape, self.shared if of_queries else 1
        x = x.view(num_rows, self.kv_heads, shared, width, x.shape[-1]).permute(0, 3, 1, 2, 4)
        return rows.flat(x.reshape(num_rows, width, self.kv_heads * shared, x.shape[-1]))

    def all_joined(self, parts: tuple[Tensor, Tensor, Tensor], rows: Rows) -> list[Tensor]:
        """Queries, keys and values back to flat tokens."""
        return [self.joined(x, rows, of_queries=n == 0) for n, x in enumerate(parts)]

    def causal(self, scores: Tensor, causal_WW: Tensor) -> Tensor:
        """Scores [R, J, H / J · W, W] with -inf for keys that stand behind the query."""
        width = scores.shape[-1]
        by_query = scores.view(*scores.shape[:2], self.shared, width, width)
        by_query += causal_WW[:width, :width]
        return scores

    def grouped(self, x: Tensor) -> Tensor:
        """Completions' rectangles [N, J, X, Y] by prompt: [G, J, K · X, Y]."""
        (num_rows, kv_heads, high, wide), size = x.shape, self.tree.group_size
        x = x.reshape(num_rows // size, size, kv_heads, high, wide).transpose(1, 2)
        return x.reshape(num_rows // size, kv_heads, size * high, wide)

    def ungrouped(self, x: Tensor) -> Tensor:
        """The reverse of `grouped`."""
        (num_groups, kv_heads, high, wide), size = x.shape, self.tree.group_size
        x = x.view(num_groups, kv_heads, size, high // size, wide).transpose(1, 2)
        return x.reshape(num_groups * size, kv_heads, high // size, wide)


class _TreeAttention(torch.autograd.Function):
    """Causal attention within prompts, and of completions on their prompt and on themselves.

    joined: [S, H + 2 J, D], queries, keys, values. Returns [S, H, D].
    """

    @staticmethod
    def forward(
        ctx: Any,
        joined: Tensor,
        turns: Tensor | None,
        tree: Tree,
        biases: tuple[Tensor, Tensor | None],
        num_heads: int,
        kv_heads: int,
    ) -> Tensor:
        both = joined[:, : num_heads + kv_heads]
        both = turned(both, turns) if turns is not None else both
        query = both[:, :num_heads] * joined.shape[-1] ** -0.5
        parts = (query, both[:, num_heads:], joined[:, num_heads + kv_heads :])
        heads = _Heads(tree, num_heads, kv_heads)
        pq, pk, pv = (heads.split(part, tree.prompts) for part in parts)
        cq, ck, cv = (heads.split(part, tree.completions) for part in parts)
        causal, hidden = biases
        weights_p = heads.causal(pq @ pk.transpose(-1, -2), causal).softmax(-1)
        shared = heads.grouped(cq) @ pk.transpose(-1, -2)
        if hidden is not None:
            shared += hidden
        own = heads.causal(cq @ ck.transpose(-1, -2), causal)
        weights_c = torch.cat([heads.ungrouped(shared), own], -1).softmax(-1)
        width = pk.shape[2]
        mixed = weights_c[..., width:] @ cv
        mixed += heads.ungrouped(heads.grouped(weights_c[..., :width]) @ pv)
        ctx.save_for_backward(pq, pk, pv, cq, ck, cv, weights_p, weights_c)
        ctx.heads, ctx.turns = heads, turns
        of_prompts = heads.joined(weights_p @ pv, tree.prompts, of_queries=True)
        of_completions = heads.joined(mixed, tree.completions, of_queries=True)
        unseen = joined.new_zeros(tree.num_unseen, *of_completions.shape[1:])
        return torch.cat([of_prompts, of_completions, unseen])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        pq, pk, pv, cq, ck, cv, weights_p, weights_c = ctx.saved_tensors
        heads, turns, width = ctx.heads, ctx.turns, pk.shape[2]
        prompts, completions = heads.tree.prompts, heads.tree.completions
        grad_c = heads.split(grad, completions, zeros=True)
        grouped_c = heads.grouped(grad_c)
        toward_p = heads.ungrouped(grouped_c @ pv.transpose(-1, -2))
        toward = torch.cat([toward_p, grad_c @ cv.transpose(-1, -2)], -1)
        scores = torch._softmax_backward_data(toward, weights_c, -1, weights_c.dtype)
        scores_p, scores_c = heads.grouped(scores[..., :width]), scores[..., width:]
        query = scores_c @ ck
        query += heads.ungrouped(scores_p @ pk)
        key = scores_c.transpose(-1, -2) @ cq
        value = weights_c[..., width:].transpose(-1, -2) @ grad_c
        of_completions = heads.all_joined((query, key, value), completions)

        grad_p = heads.split(grad, prompts, zeros=True)
        toward = grad_p @ pv.transpose(-1, -2)
        scores = torch._softmax_backward_data(toward, weights_p, -1, weights_p.dtype)
        key = scores.transpose(-1, -2) @ pq
        key += scores_p.transpose(-1, -2) @ heads.grouped(cq)
        value = weights_p.transpose(-1, -2) @ grad_p
        value += heads.grouped(weights_c[..., :width]).transpose(-1, -2) @ grouped_c
        of_prompts = heads.all_joined((scores @ pk, key, value), prompts)

        both = [
            torch.cat([*pair, grad.new_zeros(heads.tree.num_unseen, *pair[0].shape[1:])])
            for pair in zip(of_prompts, of_completions, strict=True)
        ]
        both[0] *= grad.shape[-1] ** -0.5
        if turns is not None:
            both[:2] = [turned(part, turns, back=True) for part in both[:2]]
        return torch.cat(both, 1), None, None, None, None, None
