"""Every completion of rankings scored by a reward model or an ensemble, in the order that the figures want.

Owns that order and what is counted on the way. Knows nothing of files and figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crestline.models.reward import RewardEnsemble, RewardModel
from crestline.types import Ranking

Array = NDArray[np.float64]
CHUNK = 2048
"""Completions between two looks at the progress; batches are made inside, by length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores of N completions, in the order of the rankings and of their completions.

    scores_N: raw, members aggregated. member_scores_NM: of each member on one scale; M is 1 for a single model.
    num_tokens_N: that the model read. truncated_N: True where the text was too long and lost its front.
    """

    scores_N: Array
    member_scores_NM: Array
    num_tokens_N: NDArray[np.int64]
    truncated_N: NDArray[np.bool_]

    @property
    def num_truncated(self) -> int:
        """Completions that were too long."""
        return int(self.truncated_N.sum())

    def of(self, chosen_N: NDArray[np.bool_]) -> Scores:
        """The scores of some completions. chosen_N: True for those."""
        return Scores(
            scores_N=self.scores_N[chosen_N],
            member_scores_NM=self.member_scores_NM[chosen_N],
            num_tokens_N=self.num_tokens_N[chosen_N],
            truncated_N=self.truncated_N[chosen_N],
        )


def score_rankings(
    model: RewardModel | RewardEnsemble,
    rankings: Sequence[Ranking],
    *,
    progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> Scores:
    """Score all completions, of unranked ones too. progress: called with (completions scored, of how many, {})."""
    prompts = [ranking.prompt for ranking in rankings for _ in ranking.completions]
    texts = [text for ranking in rankings for text in ranking.completions]
    members = [np.zeros((0, model.num_members))]
    tokens: list[int] = []
    truncated: list[bool] = []
    for start in range(0, len(texts), CHUNK):
        stop = min(start + CHUNK, len(texts))
        rows = model.rows(prompts[start:stop], texts[start:stop])
        members.append(model.members_of_rows(rows))  # type: ignore[arg-type]
        tokens += [row.num_tokens for row in rows]
        truncated += [row.is_truncated for row in rows]
        if progress:
            progress(stop, len(texts), {})
    members_NM = np.concatenate(members)
    return Scores(
        scores_N=model.aggregated(members_NM),
        member_scores_NM=members_NM,
        num_tokens_N=np.array(tokens, dtype=np.int64),
        truncated_N=np.array(truncated, dtype=np.bool_),
    )
