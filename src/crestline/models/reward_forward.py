"""Raw scores of texts: how those of a ranking, or to one prompt, go through a reward model.

Owns the ways there are (padded, packed, each beginning of a ranking once) and the check of which of them a backbone
allows: only a way that gives the plain scores is taken. Knows nothing of rankings' order, losses and tokenizers.
Letters: N texts, M heads, T tokens, C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crestline.models.blocks import recomputes
from crestline.models.llama_family import family_of
from crestline.models.logprobs import EVEN_ROWS
from crestline.models.packed_attention import Unsupported, packed_attention
from crestline.models.packing import Packed, RankedTexts, packed
from crestline.models.pooled import encoder_of, encoder_pooled, llama_pooled

PADDED_TOKENS = 4096
"""Tokens of a padded rectangle, at most, unless one text has more."""
MOST_PADDING = 1.125
"""A padded rectangle holds at most so many times the tokens of its texts."""
TOLERANCE = 1e-3
"""Two ways agree where scores differ by less than this share of their spread: float32 differs by a hundredth of it."""


@dataclass(frozen=True)
class Forward:
    """One way from texts to raw scores [N, M], with gradients.

    name: as evaluation.json tells it. shares: whether what a ranking's texts share goes through the model once.
    drops_out: whether dropout works where the model is in training mode. recomputes: whether activation checkpointing
    works.
    """

    name: str
    scores: Callable[[Any, RankedTexts], Tensor]
    shares: bool
    drops_out: bool = True
    recomputes: bool = True

    def num_encoded_tokens(self, texts: RankedTexts) -> int:
        """Tokens that go through the model, without padding."""
        return texts.num_different_tokens if self.shares else texts.num_tokens


def plain_scores(model: Any, texts: RankedTexts) -> Tensor:
    """Texts of about one length in padded rectangles, by the model's own forward pass."""
    device, pad = next(model.parameters()).device, _pad(model)
    order, scores = [], []
    for members in _alike([len(ids) for ids in texts.ids]):
        width = len(texts.ids[members[0]])
        tokens_NT = np.full((len(members), width), pad, dtype=np.int64)
        for place, n in enumerate(members):
            tokens_NT[place, : len(texts.ids[n])] = texts.ids[n]
        lengths_N = np.array([len(texts.ids[n]) for n in members])
        seen_NT = (np.arange(width) < lengths_N[:, None]).astype(np.int64)
        found = model(
            input_ids=torch.from_numpy(tokens_NT).to(device),
            attention_mask=torch.from_numpy(seen_NT).to(device),
        )
        scores.append(found.logits)
        order += members
    back = torch.from_numpy(np.argsort(np.array(order))).to(device)
    return torch.cat(scores).index_select(0, back)


def packed_decoder_scores(model: Any, texts: RankedTexts) -> Tensor:
    """A causal model over one row, each beginning once; the score is read at a text's last token."""
    inner = _without_adapters(model)
    row = _decoder_row(model, texts)
    scores: Tensor = inner.score(_hidden(inner, row).index_select(0, row.at_N))
    return scores


def packed_encoder_scores(model: Any, texts: RankedTexts) -> Tensor:
    """A bidirectional model over one row; the score is read at a text's first token, as BERT and its kin do."""
    inner = _without_adapters(model)
    row = _encoder_row(model, texts)
    return _encoder_head(inner, _hidden(inner, row).index_select(0, row.at_N))


def llama_scores(model: Any, texts: RankedTexts) -> Tensor:
    """Our own forward pass of the Llama family, each beginning once. Raises ValueError for other models."""
    family = family_of(model)
    if family is None:
        raise ValueError("not of the Llama family")
    device = family.embedding.device.type
    dtype, row = _arithmetic(device, family.embedding.dtype), _decoder_row(model, texts)
    with torch.autocast(device, enabled=False):
        hidden_NC = llama_pooled(family, row, dtype, recompute=recomputes(model))
    scores: Tensor = _without_adapters(model).score(hidden_NC)
    return scores


def encoder_scores(model: Any, texts: RankedTexts) -> Tensor:
    """Our own forward pass of encoders built like BERT."""
    inner = _without_adapters(model)
    encoder = encoder_of(inner.base_model)
    device = encoder.words.device.type
    dtype, row = _arithmetic(device, encoder.words.dtype), _encoder_row(model, texts)
    with torch.autocast(device, enabled=False):
        hidden_NC = encoder_pooled(encoder, row, dtype, recompute=recomputes(model))
    return _encoder_head(inner, hidden_NC)


PLAIN = Forward("padded", plain_scores, shares=False)
WAYS = (
    Forward("llama", llama_scores, shares=True, drops_out=False),
    Forward("encoder", encoder_scores, shares=False, drops_out=False),
    Forward("packed decoder", packed_decoder_scores, shares=True, recomputes=False),
    Forward("packed encoder", packed_encoder_scores, shares=False, recomputes=False),
)
"""Fastest first."""
NO_WAY = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What a forward pass raises that was not written for such a model."""


@torch.no_grad()
def choose_forward(model: Any, probe: RankedTexts, ways: Sequence[Forward] = WAYS) -> Forward:
    """The first way that gives this model's plain scores of the probe; plain where none does.

    probe: texts, among them one as long as any that will come. The model is set to `eval`; nothing is trained. Call it
    outside autocast, so that the choice is the same whatever arithmetic comes after.
    """
    model.eval()
    try:
        expected = plain_scores(model, probe)
    except NO_WAY:
        return PLAIN  # it says why when it is trained, or asked for a score
    if not bool(expected.isfinite().all()):
        return PLAIN
    close = TOLERANCE * float(expected.std()) if len(expected) > 1 else 0.0
    for way in ways:
        try:
            found = way.scores(model, probe)
        except NO_WAY:
            continue  # a model of another build: it has its own way
        if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=close):
            return way
    return PLAIN


def _decoder_row(model: Any, texts: RankedTexts) -> Packed:
    columns = _last_columns(texts, _pad(model))
    device = next(model.parameters()).device
    return packed(texts, columns, is_causal=True, multiple=_multiple(device), device=device)


def _encoder_row(model: Any, texts: RankedTexts) -> Packed:
    first_N = np.zeros(len(texts.ids), dtype=np.int64)
    device = next(model.parameters()).device
    multiple = _multiple(device)
    row = packed(texts.alone(), first_N, is_causal=False, multiple=multiple, device=device)
    padding = _padding_of_positions(model)
    if padding is None:
        return row
    positions = [np.where(ids != padding, np.cumsum(ids != padding) - 1, -1) for ids in texts.ids]
    positions.append(np.zeros(len(row.tokens_T) - texts.num_tokens, dtype=np.int64))
    return replace(row, positions_T=torch.from_numpy(np.concatenate(positions)).to(device))


def _padding_of_positions(model: Any) -> int | None:
    """The padding id that RoBERTa and its kin leave out when they count positions, from the place after it on."""
    embeddings = getattr(_without_adapters(model).base_model, "embeddings", None)
    found = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return None if found is None else int(found)


def _multiple(device: torch.device) -> int:
    return EVEN_ROWS if torch.is_autocast_enabled(device.type) else 1


def _encoder_head(inner: Any, first_NC: Tensor) -> Tensor:
    """Scores from the first token, as the heads of BERT and of RoBERTa read it."""
    pooler, first_NTC = getattr(inner.base_model, "pooler", None), first_NC[:, None]
    if pooler is None:
        scores: Tensor = inner.classifier(first_NTC)
    else:
        scores = inner.classifier(inner.dropout(pooler(first_NTC)))
    return scores


def _arithmetic(device: str, own: torch.dtype) -> torch.dtype:
    """What autocast asks for, which our own forward passes settle themselves."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else own


def _hidden(inner: Any, row: Packed) -> Tensor:
    """Hidden states of the backbone over the row, [T, C]. Raises Unsupported with activation checkpointing: what is
    computed again in the backward pass would find another attention."""
    if recomputes(inner):
        raise Unsupported("activation checkpointing")
    backbone, positions_T = inner.base_model, row.positions_T
    padding = _padding_of_positions(inner)
    if padding is not None:
        positions_T = positions_T + padding + 1
    with packed_attention(inner):
        found = backbone(
            input_ids=row.tokens_T[None],
            position_ids=positions_T[None],
            packed=row,
            use_cache=False,
        )
    hidden: Tensor = found.last_hidden_state[0]
    return hidden


def _without_adapters(model: Any) -> Any:
    """The transformers model: adapters stay in it, but names are its own."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _pad(model: Any) -> int:
    pad = model.config.pad_token_id
    if pad is None:
        raise ValueError("the model's config names no pad_token_id")
    return int(pad)


def _last_columns(texts: RankedTexts, pad: int) -> np.ndarray:
    """Place of each text's last token that is no padding, as transformers finds it; 0 where all are."""
    found = [np.flatnonzero(ids != pad) for ids in texts.ids]
    return np.array([places[-1] if len(places) else 0 for places in found], dtype=np.int64)


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of texts in groups of about one length, longest first in each."""
    groups: list[list[int]] = []
    real = 0
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        width = lengths[groups[-1][0]] if groups else 0
        cells = width * (len(groups[-1]) + 1) if groups else 0
        fits = cells <= PADDED_TOKENS and cells <= MOST_PADDING * (real + lengths[n])
        if groups and fits:
            groups[-1].append(n)
            real += lengths[n]
        else:
            groups.append([n])
            real = lengths[n]
    return groups
