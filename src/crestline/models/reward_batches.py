"""Which rows are scored together. Without models.

Letters: N rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from crestline.models.encoding import Row
from crestline.models.packing import RankedTexts
from crestline.models.tree import Ids, shared_beginning


def padded_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Places of rows, longest first, in batches of at most batch_tokens with their padding, or of one row.

    >>> list(padded_batches([3, 9, 4, 4], 9))
    [[1], [2, 3], [0]]
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    while order:
        size = max(1, batch_tokens // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def packed_batches(
    rows: Sequence[Row], batch_tokens: int, *, shares: bool
) -> Iterator[tuple[list[int], RankedTexts]]:
    """Places of rows and their texts in batches of at most batch_tokens, or of one row.

    shares: rows to the same prompt stand together, and what they share counts once; else each stands for itself. A
    row that lost its front shares with others that did at most. Groups come in the order of their longest row.
    """
    together: dict[tuple[int, bool], list[int]] = {}
    for n, row in enumerate(rows):
        key = (row.prompt, row.is_truncated) if shares else (n, False)
        together.setdefault(key, []).append(n)
    for places in together.values():
        places.sort(key=lambda n: -rows[n].num_tokens)
    ids = [np.array(row.ids) for row in rows]
    batch: list[list[int]] = []
    room = batch_tokens
    for places in sorted(together.values(), key=lambda places: -rows[places[0]].num_tokens):
        shared = shared_beginning([ids[n] for n in places])
        new = True  # whether what is shared must be read again
        for n in places:
            own = rows[n].num_tokens - shared
            if batch and own + shared * new > room:
                yield _texts(ids, batch)
                batch, room, new = [], batch_tokens, True
            if new:
                batch.append([])
            batch[-1].append(n)
            room -= own + shared * new
            new = False
    if batch:
        yield _texts(ids, batch)


def _texts(ids: Sequence[Ids], batch: Sequence[Sequence[int]]) -> tuple[list[int], RankedTexts]:
    texts = RankedTexts.of([[ids[n] for n in places] for places in batch])
    return [n for places in batch for n in places], texts
