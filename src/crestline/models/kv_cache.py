"""Keys and values of the rows being written, and attention over them.

Owns where they lie. A long prompt is stored once for all rows that continue it; its last tokens, like all of a short
prompt, stand in every row's own part, before its completion. Rows are appended and dropped at any time; each counts
its own columns. Knows no model. Which columns a row sees, and in what order they are summed, depends on the row
alone; columns that it does not see have weight 0.

Letters: B rows, H heads, J key heads, D head size, L own columns, P stored prompts, T their columns, M members of a
prompt. Queries of one key head stand together: a row has J × H / J of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from crestline.models.matmul import longest_sum, weighted_sum

COLUMNS = 16
"""Columns are stored and read in multiples of it, so that sums over them fall into the same lanes in every batch."""
SHORT_PROMPT = 64
"""Prompts up to so many tokens are not worth a second product in every layer."""
MEMBERS = 8
"""Products over a stored prompt are padded to a multiple of so many members; else other kernels would take them."""
FEWEST_PRODUCTS = 400
"""Head size × columns below which a batch of small float32 products takes another kernel."""
FEWEST_LOW_PRECISION_PRODUCTS = 4097
"""The same in lower precision, over all heads."""
QUERIES = 4
"""Queries of one key head beyond so many are padded to a multiple of it: else threads would divide them unevenly."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _View:
    """The parts of one layer that a step writes to and reads from.

    new_keys, new_values: [rows · J · columns, D]. keys: [B · J, D, L], values: [B · J, L, D].
    stored_keys: [P · J, D, T], stored_values: [P · J, T, D].
    """

    new_keys: Tensor
    new_values: Tensor
    keys: Tensor
    values: Tensor
    stored_keys: Tensor
    stored_values: Tensor


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """What a model asks of its cache. windows: for each layer the tokens a token may look at, None for all."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    windows: tuple[int | None, ...]


def shared_length(length: int) -> int:
    """How many tokens of a prompt are stored once for all its rows.

    >>> [shared_length(n) for n in (1, 64, 65, 200, 208)]
    [0, 0, 64, 192, 192]
    """
    return (length - 1) // COLUMNS * COLUMNS if length > SHORT_PROMPT else 0


def up_to(multiple: int, number: int) -> int:
    """The number, rounded up to a multiple."""
    return -(-number // multiple) * multiple


class KvCache:
    """Room for `rows` rows; begin each step with `advance`, then `attend` once for every layer."""

    def __init__(
        self,
        shape: CacheShape,
        *,
        rows: int,
        own_columns: int,
        prompts: int,
        prompt_columns: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        heads, size = shape.num_kv_heads, shape.head_size
        self.most_columns = own_columns
        fewest = -(-FEWEST_PRODUCTS // size)
        if dtype != torch.float32:
            fewest = max(fewest, -(-FEWEST_LOW_PRECISION_PRODUCTS // (shape.num_heads * size)))
        self.fewest_columns = up_to(COLUMNS, fewest)
        """The room, and what is left of it where sums over it are cut, has at least so many."""
        self.longest_sum = longest_sum(dtype)
        self.width = 0
        """Own columns that there is room for; all are read."""
        self.own = [self._pair((rows, heads, self.width, size)) for _ in shape.windows]
        stored = (prompts, heads, prompt_columns, size)
        self.stored = [self._pair(stored) for _ in shape.windows] if prompts else []
        self.lengths_B = np.zeros(0, np.int64)
        """Tokens in each row's own part."""
        self.shared_B = np.zeros(0, np.int64)
        """Tokens of each row's prompt that are stored once."""
        self.prompt_B = np.zeros(0, np.int64)
        """Which stored prompt each row continues; -1 for none."""
        self.num_prompts = 0
        self.views: list[_View] = []
        """One for each layer; none after the room was moved."""
        self.seen = (0, 0, 0, 0)
        """Rows, own and stored columns and prompts of the last step."""
        self.stored_width = 0
        self.place_L = self.place_T = torch.arange(0, device=device)

    def _pair(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Zeros: weight 0 times what lay in memory before may be no number."""
        pair = [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2)]
        return pair[0], pair[1]

    def append(self, lengths: Sequence[int], counts: Sequence[int]) -> tuple[list[Ints], Ints]:
        """Make room for prompts of these lengths, each continued by `counts` rows.

        Returns each prompt's rows, and the place where its shared part is stored (-1 where it has none); `store` then
        fills them.
        """
        shared_P = np.array([shared_length(length) for length in lengths], np.int64)
        has_P = shared_P > 0
        place_P = np.where(has_P, self.num_prompts + np.cumsum(has_P) - 1, -1)
        self.num_prompts += int(has_P.sum())
        first = len(self.lengths_B)
        ends = first + np.cumsum(counts)
        rows_P = [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]
        self.lengths_B = np.concatenate([self.lengths_B, np.repeat(lengths - shared_P, counts)])
        self.shared_B = np.concatenate([self.shared_B, np.repeat(shared_P, counts)])
        self.prompt_B = np.concatenate([self.prompt_B, np.repeat(place_P, counts)])
        self._grow()
        self._group()
        return rows_P, place_P

    def _grow(self) -> None:
        """Make room for the longest row's columns. Room lies without gaps, since products over parts of it are slow;
        so it is moved when it grows, a layer at a time."""
        needed = int(self.lengths_B.max())
        if needed <= self.width:
            return
        ahead = min(self.most_columns, needed + needed // 2 + COLUMNS // 2)
        self.width = up_to(COLUMNS, max(self.fewest_columns, ahead))
        if self.width % self.longest_sum and self.width % self.longest_sum < self.fewest_columns:
            self.width += self.fewest_columns - self.width % self.longest_sum
        self.views = []  # else they would keep the old room in memory
        for layer, pair in enumerate(self.own):
            rows, heads, width, size = pair[0].shape
            grown = self._pair((rows, heads, self.width, size))
            for new, old in zip(grown, pair, strict=True):
                new[:, :, :width] = old
            self.own[layer] = grown

    def store(
        self,
        layer: int,
        keys_PTJD: Tensor,
        values_PTJD: Tensor,
        rows_P: Sequence[Ints],
        place_P: Ints,
    ) -> None:
        """Write a layer of prompts whose shared part is equally long; what is padded at the end is never seen."""
        shared = shared_length(keys_PTJD.shape[1])
        rows_B = self._index(np.concatenate(rows_P))
        source_B = self._index(np.repeat(np.arange(len(rows_P)), [len(rows) for rows in rows_P]))
        for own, stored, new in zip(
            self.own[layer],
            self.stored[layer] if shared else (None, None),
            (keys_PTJD, values_PTJD),
            strict=True,
        ):
            rest = new[:, shared:].transpose(1, 2).index_select(0, source_B)
            own[:, :, : rest.shape[2]].index_copy_(0, rows_B, rest.to(own.dtype))
            if stored is not None:
                at_P = self._index(place_P)
                stored[at_P, :, :shared] = new[:, :shared].transpose(1, 2).to(stored.dtype)
                stored[at_P, :, shared:] = 0

    def keep(self, rows: Ints) -> None:
        """Go on with these rows only, as rows 0, 1, …; cheap where most stay where they are."""
        moved = np.flatnonzero(rows != np.arange(len(rows)))
        used = int(self.lengths_B.max(initial=0))
        own = [tensor[:, :, :used] for pair in self.own for tensor in pair]
        self._move(own, rows[moved], moved)
        self.lengths_B, self.shared_B = self.lengths_B[rows], self.shared_B[rows]
        self.prompt_B = self.prompt_B[rows]
        wanted = np.unique(self.prompt_B[self.prompt_B >= 0])
        holes = np.setdiff1d(np.arange(len(wanted)), wanted)
        movers = wanted[wanted >= len(wanted)]
        self._move([tensor for pair in self.stored for tensor in pair], movers, holes)
        renamed = np.arange(self.num_prompts + 1)
        renamed[movers] = holes
        self.prompt_B = np.where(self.prompt_B >= 0, renamed[self.prompt_B], -1)
        self.num_prompts = len(wanted)
        self._group()

    def _move(self, tensors: list[Tensor], source: Ints, target: Ints) -> None:
        if len(source):
            source_index, target_index = self._index(source), self._index(target)
            for tensor in tensors:
                tensor.index_copy_(0, target_index, tensor.index_select(0, source_index))

    def _group(self) -> None:
        """Tables that bring the queries of one stored prompt together (`gather`) and back (`scatter`)."""
        if not self.num_prompts:
            return
        heads, shared = self.shape.num_kv_heads, self.shape.num_heads // self.shape.num_kv_heads
        rows = np.flatnonzero(self.prompt_B >= 0)
        rows = rows[np.argsort(self.prompt_B[rows], kind="stable")]
        count_P = np.bincount(self.prompt_B[rows], minlength=self.num_prompts)
        starts_P = np.cumsum(count_P) - count_P
        member = np.arange(len(rows)) - starts_P[self.prompt_B[rows]]
        width = up_to(MEMBERS, int(count_P.max()))
        row_PM = np.zeros((self.num_prompts, width), np.int64)
        row_PM[self.prompt_B[rows], member] = rows
        member_B = np.zeros(len(self.prompt_B), np.int64)
        member_B[rows] = member
        head_J, query = np.arange(heads)[:, None], np.arange(shared)
        gather = row_PM[:, None, :, None] * heads + head_J[:, :, None]  # [P, J, M, 1]
        gather = gather * shared + query
        place_BJ = np.maximum(self.prompt_B, 0)[:, None] * heads + head_J[:, 0]
        scatter = (place_BJ * width + member_B[:, None])[:, :, None] * shared + query
        self.gather = self._index(gather.reshape(-1))
        self.scatter = self._index(scatter.reshape(-1))
        has_B = torch.from_numpy(self.prompt_B >= 0).to(self.device, self.dtype)
        self.has_prompt_B1 = None if len(rows) == len(self.prompt_B) else has_B[:, None]

    def _index(self, numbers: Ints) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)

    def advance(self) -> Tensor:
        """Begin a step: every row gets one more token. Returns the tokens' positions [B]."""
        column_B = np.minimum(self.lengths_B, self.most_columns - 1)  # of rows that ended, too
        position_B = self.shared_B + column_B
        self.lengths_B = column_B + 1
        self._grow()
        self._look(len(column_B))
        place_BJ = np.arange(len(column_B) * self.shape.num_kv_heads).reshape(len(column_B), -1)
        write_at_BJ = place_BJ * self.width + column_B[:, None]
        self.write_at = self._index(write_at_BJ.reshape(-1))
        column_B1, shared_B1 = self._index(column_B)[:, None], self._index(self.shared_B)[:, None]
        hidden = self.place_L > column_B1
        distance = column_B1 - self.place_L
        if self.stored_width:
            hidden = torch.cat([hidden, self.place_T >= shared_B1], 1)
            distance = torch.cat([distance, column_B1 + shared_B1 - self.place_T], 1)
        self.bias = {
            window: torch.zeros(hidden.shape, device=self.device)
            .masked_fill_(hidden if window is None else hidden | (distance >= window), -torch.inf)
            .unsqueeze(1)
            for window in set(self.shape.windows)
        }
        return self._index(position_B)

    def _look(self, rows: int) -> None:
        """Make the views of steps of this size, where the last step had another."""
        stored_width = self.stored[0][0].shape[2] if self.num_prompts else 0
        seen = (rows, self.width, stored_width, self.num_prompts)
        if self.seen == seen:
            return
        self.seen, self.stored_width = seen, stored_width
        self.place_L = torch.arange(self.width, device=self.device)
        self.place_T = torch.arange(stored_width, device=self.device)
        heads = self.shape.num_kv_heads
        self.views = []
        for (keys, values), stored in zip(self.own, self.stored or self.own, strict=True):
            read = [t.flatten(0, 1)[: rows * heads] for t in (keys, values)]
            kept = [t.flatten(0, 1)[: self.num_prompts * heads] for t in stored]
            self.views.append(
                _View(
                    new_keys=keys.flatten(0, 2),
                    new_values=values.flatten(0, 2),
                    keys=read[0].transpose(-1, -2),
                    values=read[1],
                    stored_keys=kept[0].transpose(-1, -2),
                    stored_values=kept[1],
                )
            )

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the step's keys and values [B, J · D] of a layer; what the queries [B, H · D] take, [B, H · D]."""
        view, rows, size = self.views[layer], query.shape[0], self.shape.head_size
        view.new_keys.index_copy_(0, self.write_at, key.reshape(-1, size).to(self.dtype))
        view.new_values.index_copy_(0, self.write_at, value.reshape(-1, size).to(self.dtype))
        query = query.reshape(view.keys.shape[0], -1, size).to(self.dtype)
        scores = self._own_product(torch.bmm, query, view.keys).reshape(rows, -1, self.width)
        if self.stored_width:
            scores = torch.cat([scores, self._stored_scores(view, query)], 2)
        weights = torch.add(self.bias[self.shape.windows[layer]], scores, alpha=size**-0.5)
        weights = weights.softmax(-1).to(self.dtype)
        own = weights[..., : self.width].reshape(query.shape[0], -1, self.width)
        mixed = self._own_product(weighted_sum, own, view.values).reshape(rows, -1)
        return mixed.add_(self._stored_mixed(view, weights)) if self.stored_width else mixed

    def _own_product(
        self, product: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor
    ) -> Tensor:
        """product(left, right), [B · J, H / J, …], padded as it needs to be."""
        queries = left.shape[1]
        missing = -queries % QUERIES if queries > QUERIES else 0
        if not missing:
            return product(left, right)
        return product(F.pad(left, (0, 0, 0, missing)), right)[:, :queries]

    def _stored_scores(self, view: _View, query: Tensor) -> Tensor:
        """Scores of each row's queries over its prompt's shared part, [B, H, T]."""
        size = self.shape.head_size
        together = query.view(-1, size).index_select(0, self.gather)
        scores = torch.bmm(together.view(len(view.stored_keys), -1, size), view.stored_keys)
        apart = scores.view(-1, self.stored_width).index_select(0, self.scatter)
        return apart.view(-1, self.shape.num_heads, self.stored_width)

    def _stored_mixed(self, view: _View, weights: Tensor) -> Tensor:
        """What the queries take from the shared part, [B, H · D]."""
        flat = weights[..., self.width :].reshape(-1, self.stored_width)
        together = flat.index_select(0, self.gather)
        together = together.view(len(view.stored_values), -1, self.stored_width)
        mixed = weighted_sum(together, view.stored_values).view(-1, self.shape.head_size)
        apart = mixed.index_select(0, self.scatter).view(len(weights), -1)
        return apart if self.has_prompt_B1 is None else apart * self.has_prompt_B1
