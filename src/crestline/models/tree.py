"""Groups of completions that share a prompt, laid out without padding and with each prompt once.

Owns which token stands where. Knows nothing of models. A group is a prompt and K completions; plain sequences are
groups of one completion without a prompt.

Letters: S tokens of the layout, G groups, K completions of a group, N = G · K completions, R rows (prompts or
completions), W tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Rows that stand behind each other in the layout, from `start` on.

    lengths_R: tokens of each row, which may be 0. real: places of the real cells among the R · W cells of the
    padded rectangle, row by row. place_RW: place of each cell in the layout; a padding cell points at the first row.
    """

    start: int
    lengths_R: Tensor
    place_RW: Tensor
    real: Tensor

    @property
    def num_tokens(self) -> int:
        return len(self.real)

    @property
    def is_full(self) -> bool:
        """Whether all rows are equally long, so that nothing is padding."""
        return self.place_RW.numel() == len(self.real)

    def padded(self, x_S: Tensor, *, zeros: bool = False) -> Tensor:
        """Rows of a flat tensor [S, …] as a rectangle [R, W, …]; padding repeats some row, or is 0."""
        inside = x_S[self.start : self.start + self.num_tokens]
        shape = (*self.place_RW.shape, *x_S.shape[1:])
        if self.is_full:
            return inside.reshape(shape)
        if not zeros:
            return x_S.index_select(0, self.place_RW.reshape(-1)).view(shape)
        cells = x_S.new_zeros(self.place_RW.numel(), *x_S.shape[1:])
        return cells.index_copy_(0, self.real, inside).view(shape)

    def flat(self, x_RW: Tensor) -> Tensor:
        """The real cells of a rectangle [R, W, …] in the order of the layout."""
        cells = x_RW.reshape(-1, *x_RW.shape[2:])
        return cells if self.is_full else cells.index_select(0, self.real)


@dataclass(frozen=True)
class Tree:
    """A layout: all prompts, then all completions, group by group, then tokens that nobody looks at.

    tokens_S, positions_S: ids, and places as the model counts them: a completion goes on where its prompt ended.
    """

    tokens_S: Tensor
    positions_S: Tensor
    prompts: Rows
    completions: Rows

    @property
    def group_size(self) -> int:
        return len(self.completions.lengths_R) // len(self.prompts.lengths_R)

    @property
    def num_unseen(self) -> int:
        """Tokens at the end that belong to no row."""
        return len(self.tokens_S) - self.prompts.num_tokens - self.completions.num_tokens

    def to(self, device: torch.device | str) -> Tree:
        """The same layout on another device."""
        return Tree(
            tokens_S=self.tokens_S.to(device),
            positions_S=self.positions_S.to(device),
            prompts=_moved(self.prompts, device),
            completions=_moved(self.completions, device),
        )


def _moved(rows: Rows, device: torch.device | str) -> Rows:
    tensors = {f.name: getattr(rows, f.name).to(device) for f in fields(rows) if f.name != "start"}
    return replace(rows, **tensors)


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


def tree_of(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    multiple: int = 1,
) -> Tree:
    """Lay out G prompts and their completions, the same number K for each; any of them may be empty.

    prompts: token ids; completions: for each prompt its completions' ids. multiple: the number of tokens is rounded up
    to it. Raises ValueError if the numbers differ, or if there is no token at all.

    >>> tree_of([[7, 8]], [[[1], [2, 3]]]).positions_S.tolist()
    [0, 1, 2, 2, 3]
    """
    size = len(completions[0])
    if len(prompts) != len(completions) or any(len(group) != size for group in completions):
        raise ValueError("every prompt needs the same number of completions")
    flat = [ids for group in completions for ids in group]
    tokens_S = torch.tensor(list(chain(*prompts, *flat)), dtype=torch.long)
    if len(tokens_S) == 0:
        raise ValueError("no tokens to lay out")
    prompt_rows, prompt_places = _rows([len(ids) for ids in prompts], 0)
    completion_rows, places = _rows([len(ids) for ids in flat], prompt_rows.num_tokens)
    before_N = prompt_rows.lengths_R.repeat_interleave(size)
    shifted = places + before_N.repeat_interleave(completion_rows.lengths_R)
    positions_S = torch.cat([prompt_places, shifted])
    unseen = (0, -len(tokens_S) % multiple)
    return Tree(F.pad(tokens_S, unseen), F.pad(positions_S, unseen), prompt_rows, completion_rows)


def _rows(lengths: Sequence[int], start: int) -> tuple[Rows, Tensor]:
    """Rows that stand behind each other, and each token's place within its row."""
    lengths_R = torch.tensor(lengths)
    column_W = torch.arange(int(lengths_R.max()))
    real_RW = column_W < lengths_R[:, None]
    starts_R = lengths_R.cumsum(0) - lengths_R + start
    place_RW = torch.where(real_RW, starts_R[:, None] + column_W, 0)
    rows = Rows(start, lengths_R, place_RW, real_RW.reshape(-1).nonzero()[:, 0])
    return rows, column_W.expand(real_RW.shape)[real_RW]
