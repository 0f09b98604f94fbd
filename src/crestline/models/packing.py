"""Texts that are scored together, laid in one row without padding, what they share once.

Owns which token stands where, and which tokens look at which. Knows nothing of models and of what a score is.
Letters: N texts, R rankings, T tokens of the row, B blocks of a group, Q query slots, L key slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from crestline.models.tree import Ids, shared_beginning

Device = torch.device | str

CELLS_OF_A_CALL = {"cpu": 1 << 10, "cuda": 1 << 18}
"""Attention cells that cost as much time as one more call: below that, blocks of unlike lengths go together."""


@dataclass(frozen=True)
class RankedTexts:
    """N texts as token ids; the texts of one ranking stand together and may begin alike.

    ids: of each text, whole, at least one. counts: texts of each ranking, at least one, summing to N.
    shared: first tokens that all texts of each ranking have in common; fewer than the shortest has.
    """

    ids: tuple[Ids, ...]
    counts: tuple[int, ...]
    shared: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self.ids))

    @property
    def num_different_tokens(self) -> int:
        """Tokens where what a ranking's texts share counts once."""
        pairs = zip(self.counts, self.shared, strict=True)
        return self.num_tokens - sum((count - 1) * shared for count, shared in pairs)

    def alone(self) -> RankedTexts:
        """The same texts, none of which knows of another."""
        return RankedTexts(self.ids, (1,) * len(self.ids), (0,) * len(self.ids))

    def chosen(self, rankings: Sequence[int]) -> RankedTexts:
        """The texts of some rankings, in that order."""
        return RankedTexts(
            tuple(self.ids[n] for r in rankings for n in range(self.first[r], self.first[r + 1])),
            tuple(self.counts[r] for r in rankings),
            tuple(self.shared[r] for r in rankings),
        )

    @cached_property
    def first(self) -> list[int]:
        """The number of each ranking's first text, and N."""
        return list(accumulate(self.counts, initial=0))

    @classmethod
    def of(cls, rankings: Sequence[Sequence[Ids]]) -> RankedTexts:
        """Texts by ranking; what they share is found here."""
        return cls(
            tuple(ids for texts in rankings for ids in texts),
            tuple(map(len, rankings)),
            tuple(map(shared_beginning, rankings)),
        )


@dataclass(frozen=True)
class Block:
    """Queries that stand together, and the keys that they see: `before` tokens from `origin` on, then `own` ones from
    `start` on. Where there are as many queries as own keys they are the same tokens, and see those before them.
    """

    query: int
    num_queries: int
    origin: int
    before: int
    start: int
    own: int

    @property
    def num_keys(self) -> int:
        return self.before + self.own


@dataclass(frozen=True)
class Group:
    """B blocks of about one length, as padded rectangles of Q queries and L keys each.

    mask_BQL: True where a query sees a key, [B, 1, Q, L]; None where every one sees all, or all before it if
    is_causal.
    """

    num_blocks: int
    num_queries: int
    num_keys: int
    mask_BQL: Tensor | None
    is_causal: bool


@dataclass(frozen=True)
class View:
    """Who looks at whom, as rectangles: the slots of all groups, one group after the other.

    queries, keys: which query and which token of the row stands in each slot; padding repeats some.
    slots: in which slot each query stands.
    """

    groups: tuple[Group, ...]
    queries: Tensor
    keys: Tensor
    slots: Tensor


@dataclass(frozen=True)
class Packed:
    """A row of T tokens, and how attention finds its way in it.

    tokens_T, positions_T: ids and places in their text. every: each token looks. at_N: place in the row of the token
    at which each text's score is read; read: only those look. longest: tokens of the longest text.
    """

    tokens_T: Tensor
    positions_T: Tensor
    every: View
    at_N: Tensor
    read: View
    longest: int
    is_causal: bool


def packed(
    texts: RankedTexts,
    columns_N: Ids,
    *,
    is_causal: bool,
    multiple: int = 1,
    device: Device = "cpu",
) -> Packed:
    """Lay texts in one row. multiple: its tokens are rounded up to a multiple by some that no text sees.

    columns_N: place in each text of the token at which its score is read. is_causal: tokens see only those before
    them; where they see all of their text, nothing can be shared.
    Raises ValueError if texts share tokens and is_causal is False.
    """
    if not is_causal and any(texts.shared):
        raise ValueError("texts of a bidirectional model share nothing")
    ids: list[Ids] = []
    positions: list[Ids] = []
    blocks: list[Block] = []
    reading: list[Block] = []
    at_N: list[int] = []
    end = 0
    for ranking, shared in enumerate(texts.shared):
        first, after, origin = texts.first[ranking], texts.first[ranking + 1], end
        if shared:
            ids.append(texts.ids[first][:shared])
            positions.append(np.arange(shared))
            blocks.append(Block(end, shared, origin, 0, end, shared))
            end += shared
        for n in range(first, after):
            own, column = texts.ids[n][shared:], int(columns_N[n])
            ids.append(own)
            positions.append(np.arange(shared, len(texts.ids[n])))
            blocks.append(Block(end, len(own), origin, shared, end, len(own)))
            at_N.append(origin + column if column < shared else end + column - shared)
            seen = column + 1 if is_causal else len(texts.ids[n])
            before = min(seen, shared)
            reading.append(Block(n, 1, origin, before, end, seen - before))
            end += len(own)
    unseen = np.zeros(-end % multiple, dtype=np.int64)
    end += len(unseen)
    return Packed(
        tokens_T=_tensor(np.concatenate([*ids, unseen]), device),
        positions_T=_tensor(np.concatenate([*positions, unseen]), device),
        every=_view(blocks, end, is_causal, device),
        at_N=_tensor(np.array(at_N), device),
        read=_view(reading, len(reading), is_causal, device),
        longest=max(map(len, texts.ids)),
        is_causal=is_causal,
    )


def _tensor(array: Ids, device: Device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)


def _view(blocks: Sequence[Block], num_queries: int, is_causal: bool, device: Device) -> View:
    """Blocks of about one length together."""
    groups: list[Group] = []
    queries: list[Ids] = []
    keys: list[Ids] = []
    slots = np.zeros(num_queries, dtype=np.int64)
    num_slots = 0
    for members in _alike(blocks, CELLS_OF_A_CALL.get(torch.device(device).type, 1 << 18)):
        group, query_BQ, key_BL = _group(members, is_causal)
        for n, block in enumerate(members):
            first = num_slots + n * group.num_queries
            slots[block.query : block.query + block.num_queries] = first + np.arange(
                block.num_queries
            )
        if group.mask_BQL is not None:
            group = replace(group, mask_BQL=group.mask_BQL.to(device))
        groups.append(group)
        queries.append(query_BQ.ravel())
        keys.append(key_BL.ravel())
        num_slots += query_BQ.size
    return View(
        tuple(groups),
        _tensor(np.concatenate(queries), device),
        _tensor(np.concatenate(keys), device),
        _tensor(slots, device),
    )


def _group(members: Sequence[Block], is_causal: bool) -> tuple[Group, Ids, Ids]:
    """Blocks as rectangles: the group, and which query and which token stands in each slot."""
    width, height = max(b.num_queries for b in members), max(b.num_keys for b in members)
    query_BQ = np.zeros((len(members), width), dtype=np.int64)
    key_BL = np.zeros((len(members), height), dtype=np.int64)
    mask_BQL = np.zeros((len(members), 1, width, height), dtype=np.bool_)
    triangle = np.tri(width, dtype=np.bool_)
    for n, block in enumerate(members):
        size = block.num_queries
        query_BQ[n, :size] = np.arange(block.query, block.query + size)
        key_BL[n, : block.before] = np.arange(block.origin, block.origin + block.before)
        own = np.arange(block.start, block.start + block.own)
        key_BL[n, block.before : block.num_keys] = own
        mask_BQL[n, :, :, : block.num_keys] = (
            True  # in padding too: a query that sees nothing is NaN
        )
        if is_causal and size == block.own:
            mask_BQL[n, 0, :size, block.before : block.num_keys] = triangle[:size, :size]
    alike = all(b.before == 0 and b.num_queries == b.own == width for b in members)
    mask = None if mask_BQL.all() or (is_causal and alike) else torch.from_numpy(mask_BQL)
    is_triangle = is_causal and alike and width > 1
    return Group(len(members), width, height, mask, is_triangle), query_BQ, key_BL


def _alike(blocks: Sequence[Block], cells_of_a_call: int) -> list[list[Block]]:
    """Blocks in groups, such that padding costs less than more calls would."""
    found: list[list[Block]] = []
    for block in sorted(blocks, key=lambda b: (b.before > 0, b.num_keys, b.num_queries)):
        group = found[-1] if found else []
        grows = _cells([*group, block]) - _cells(group)
        if group and grows <= block.num_queries * block.num_keys + cells_of_a_call:
            group.append(block)
        else:
            found.append([block])
    return found


def _cells(blocks: Sequence[Block]) -> int:
    """Query slots times key slots of a group."""
    if not blocks:
        return 0
    return len(blocks) * max(b.num_queries for b in blocks) * max(b.num_keys for b in blocks)
