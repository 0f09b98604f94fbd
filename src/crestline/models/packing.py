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
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]

CELLS_OF_A_CALL = 1024
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


def shared_beginning(texts: Sequence[Ids]) -> int:
    """First tokens that all texts have in common, such that each has one of its own; 0 for a single text.

    >>> shared_beginning([np.array([5, 6, 7]), np.array([5, 6, 8])])
    2
    """
    if len(texts) == 1:
        return 0
    most = min(map(len, texts)) - 1
    for other in texts[1:]:
        differs = np.flatnonzero(texts[0][:most] != other[:most])
        most = int(differs[0]) if len(differs) else most
    return most


@dataclass(frozen=True)
class Block:
    """Neighbours in the row: tokens `start` … `start + length - 1`, which also see `before` tokens from `origin` on."""

    start: int
    length: int
    origin: int
    before: int

    @property
    def num_keys(self) -> int:
        return self.before + self.length


@dataclass(frozen=True)
class Group:
    """B blocks of about one length, as padded rectangles of Q queries and L keys each.

    mask_BQL: True where a query sees a key, [B, 1, Q, L]; None where every one sees all (or all before it, if
    is_causal).
    """

    num_blocks: int
    num_queries: int
    num_keys: int
    mask_BQL: Tensor | None
    is_causal: bool


@dataclass(frozen=True)
class Packed:
    """A row of T tokens, and how attention finds its way in it.

    tokens_T, positions_T: ids and places in their text. queries, keys: places in the row of all groups' slots, one
    group after the other; padding repeats some place. slots_T: where each token's query is among all slots.
    start_N, origin_N, shared_N: where each text's own tokens and those that it shares begin, and how many it shares.
    longest: tokens of the longest text.
    """

    tokens_T: Tensor
    positions_T: Tensor
    groups: tuple[Group, ...]
    queries: Tensor
    keys: Tensor
    slots_T: Tensor
    start_N: Tensor
    origin_N: Tensor
    shared_N: Tensor
    longest: int
    is_causal: bool

    def places(self, columns_N: Tensor) -> Tensor:
        """Where the token at this place of each text stands in the row, [N]."""
        own_N = self.start_N + columns_N - self.shared_N
        return torch.where(columns_N < self.shared_N, self.origin_N + columns_N, own_N)


def packed(texts: RankedTexts, *, is_causal: bool, device: torch.device | str = "cpu") -> Packed:
    """Lay texts in one row. is_causal: tokens see only those before them; where they do not, nothing can be shared.

    Raises ValueError if texts share tokens and is_causal is False.
    """
    if not is_causal and any(texts.shared):
        raise ValueError("texts of a bidirectional model share nothing")
    ids: list[Ids] = []
    positions: list[Ids] = []
    blocks: list[Block] = []
    starts: list[tuple[int, int, int]] = []
    end = 0
    for ranking, shared in enumerate(texts.shared):
        origin = end
        members = texts.ids[texts.first[ranking] : texts.first[ranking + 1]]
        for own, before in [
            (members[0][:shared], 0),
            *((text[shared:], shared) for text in members),
        ]:
            if len(own) == 0:  # nothing is shared
                continue
            ids.append(own)
            positions.append(np.arange(before, before + len(own)))
            blocks.append(Block(end, len(own), origin, before))
            end += len(own)
        own_blocks = blocks[len(blocks) - len(members) :]
        starts += [(block.start, origin, shared) for block in own_blocks]
    groups, queries, keys, slots_T = _grouped(blocks, end, is_causal)
    start_N, origin_N, shared_N = np.array(starts, dtype=np.int64).T

    def tensor(array: Ids) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)

    return Packed(
        tokens_T=tensor(np.concatenate(ids)),
        positions_T=tensor(np.concatenate(positions)),
        groups=tuple(_moved(group, device) for group in groups),
        queries=tensor(queries),
        keys=tensor(keys),
        slots_T=tensor(slots_T),
        start_N=tensor(start_N),
        origin_N=tensor(origin_N),
        shared_N=tensor(shared_N),
        longest=max(map(len, texts.ids)),
        is_causal=is_causal,
    )


def _moved(group: Group, device: torch.device | str) -> Group:
    if group.mask_BQL is None:
        return group
    return replace(group, mask_BQL=group.mask_BQL.to(device))


def _grouped(
    blocks: Sequence[Block], num_tokens: int, is_causal: bool
) -> tuple[list[Group], Ids, Ids, Ids]:
    """Blocks of about one length together: groups, places of their queries and keys, slot of each token."""
    groups: list[Group] = []
    queries: list[Ids] = []
    keys: list[Ids] = []
    slots_T = np.zeros(num_tokens, dtype=np.int64)
    num_slots = 0
    for members in _alike(blocks):
        width, height = (max(b.length for b in members), max(b.num_keys for b in members))
        query_BQ = np.zeros((len(members), width), dtype=np.int64)
        key_BL = np.zeros((len(members), height), dtype=np.int64)
        mask_BQL = np.zeros((len(members), 1, width, height), dtype=np.bool_)
        for n, block in enumerate(members):
            own = np.arange(block.start, block.start + block.length)
            query_BQ[n, : block.length] = own
            key_BL[n, : block.before] = np.arange(block.origin, block.origin + block.before)
            key_BL[n, block.before : block.num_keys] = own
            slots_T[own] = num_slots + n * width + np.arange(block.length)
            mask_BQL[n, :, :, : block.num_keys] = True
            if is_causal:
                later = np.triu(np.ones((block.length, block.length), dtype=np.bool_), 1)
                mask_BQL[n, 0, : block.length, block.before : block.num_keys] &= ~later
        alike = all(b.before == 0 and b.length == width for b in members)
        mask = None if alike or mask_BQL.all() else torch.from_numpy(mask_BQL)
        groups.append(Group(len(members), width, height, mask, is_causal and mask is None))
        queries.append(query_BQ.ravel())
        keys.append(key_BL.ravel())
        num_slots += query_BQ.size
    return groups, np.concatenate(queries), np.concatenate(keys), slots_T


def _alike(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks in groups, such that padding costs less than more calls would."""
    found: list[list[Block]] = []
    for block in sorted(blocks, key=lambda b: (b.before > 0, b.num_keys, b.length)):
        group = found[-1] if found else []
        longer = [*group, block]
        grows = _cells(longer) - _cells(group)
        if group and grows <= block.length * block.num_keys + CELLS_OF_A_CALL:
            group.append(block)
        else:
            found.append([block])
    return found


def _cells(blocks: Sequence[Block]) -> int:
    if not blocks:
        return 0
    return len(blocks) * max(b.length for b in blocks) * max(b.num_keys for b in blocks)
