"""Turn people's verdicts on four answers to a question into K=4 rankings that `crestline` reads.

    python bench/prepare_finegrained.py ../shared/data/pref/finegrained rankings.jsonl [--passages]

dev_feedback.json of Fine-Grained RLHF: each question has four answers and six verdicts, one for every two answers. The
ranking is the order that agrees with all six, ties kept; where none does (a beats b, b beats c, c beats a), the
question is left out and counted. The prompt is the question as a chat message; with --passages the passages that the
annotators saw stand before it, about 700 tokens, of which a short --max_length cuts the front.
"""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

from crestline.data.columns import dense
from crestline.data.rankings import rankings_as_rows
from crestline.runs.files import write_jsonl_atomic
from crestline.types import Ranking

NUM_ANSWERS = 4
SIGNS = {0: 0, 1: 1, 2: -1}
SOURCE = "finegrained-dev"


def ranks_of(verdicts: list[int]) -> tuple[int | None, ...] | None:
    """Ranks that agree with every verdict; None if no order does.

    verdicts: one for each two answers in the order (1,2), (1,3), (1,4), (2,3), (2,4), (3,4): 0 equal, 1 the first is
    better, 2 the second.

    >>> ranks_of([1, 1, 1, 0, 1, 1]), ranks_of([1, 2, 1, 1, 1, 1])
    ((0, 1, 1, 2), None)
    """
    pairs = list(combinations(range(NUM_ANSWERS), 2))
    wins = [0] * NUM_ANSWERS
    for (first, second), verdict in zip(pairs, verdicts, strict=True):
        wins[first] += SIGNS[verdict]
        wins[second] -= SIGNS[verdict]
    agrees = all(
        (wins[first] > wins[second]) - (wins[first] < wins[second]) == SIGNS[verdict]
        for (first, second), verdict in zip(pairs, verdicts, strict=True)
    )
    return dense([-won for won in wins]) if agrees else None


def ranking_of(item: dict[str, Any], with_passages: bool) -> Ranking | None:
    """The ranking of one question; None if its verdicts contradict each other."""
    ranks = ranks_of(item["preference"])
    if ranks is None:
        return None
    question = item["question"]
    if with_passages:
        # each passage is a list of sentences, headed by its title
        passages = "\n\n".join(" ".join(sentences[1:]) for sentences in item["passages"])
        question = f"{passages}\n\n{question}"
    answers = tuple(item[f"prediction {number}"] for number in range(1, NUM_ANSWERS + 1))
    prompt = [{"role": "user", "content": question}]
    return Ranking(
        prompt=prompt, completions=answers, ranks=ranks, answered_by="people", source=SOURCE
    )


def main(source: Path, target: Path, with_passages: bool) -> None:
    items = json.loads((source / "dev_feedback.json").read_text(encoding="utf8"))
    found = [ranking_of(item, with_passages) for item in items]
    rankings = [ranking for ranking in found if ranking is not None]
    write_jsonl_atomic(target, rankings_as_rows(rankings))
    strict = sum(len(set(ranking.ranks)) == NUM_ANSWERS for ranking in rankings)
    tied = sum(len(set(ranking.ranks)) == 1 for ranking in rankings)
    print(
        f"{len(items)} questions: {len(rankings)} rankings ({strict} without ties, {tied} all tied), "
        f"{len(items) - len(rankings)} left out because their verdicts contradict each other"
    )


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--passages"]
    if len(words) != 2:
        sys.exit(__doc__)
    main(Path(words[0]), Path(words[1]), "--passages" in sys.argv)
