"""Which duels to ask next: a first pass over all checkpoints, then where the peak may be.

Owns the record of what was asked and answered, and the schedule as a pure function of it. Knows
nothing of files, people or how a verdict is reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from crestline.formulas.curves import StackedFit, fit_stacked

Phase = Literal["first", "explore", "focus", "last", "confirm"]
"""Why a duel was asked: spread evenly; the peak might be there; the fit puts it there or nearly;
has the curve turned; confirm what is about to ship."""

PASSED_ON: tuple[Phase, ...] = ("first", "explore")
"""Phases whose duels a neighbour may take over. The others count as duels of the checkpoint that they are about."""

Question = tuple[int, int]
"""(update, prompt_index) of one duel against the reference."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The duels counted: S checkpoints in order of update, the reference left out.

    updates_S: update numbers. distances_S: √nats. wins_S, counts_S: over ranked duels, a tie is
    half a win. chosen_wins, chosen_count: the ranked duels of the phases focus and confirm, asked
    where earlier answers put the peak. confirm_*: those of the confirmation alone; confirm_update
    is None before it starts. num_labels: answers given, not ranked ones included.
    """

    updates_S: tuple[int, ...]
    distances_S: NDArray[np.float64]
    wins_S: NDArray[np.float64]
    counts_S: NDArray[np.float64]
    chosen_wins: float
    chosen_count: int
    confirm_update: int | None
    confirm_wins: float
    confirm_count: int
    num_labels: int

    def fit(self) -> StackedFit:
        """The stacked fit of these counts."""
        return fit_stacked(self.distances_S, self.wins_S, self.counts_S)


@dataclass
class DuelBook:
    """Every question in the order asked, and the answers so far.

    asked: (update, prompt_index) to the phase it was asked in. answers: the outcome, 1 the
    checkpoint won, 0 it lost, 0.5 a tie, None not ranked.
    """

    asked: dict[Question, Phase] = field(default_factory=dict)
    answers: dict[Question, float | None] = field(default_factory=dict)

    def pending(self) -> list[Question]:
        """Asked and not answered yet, in the order asked."""
        return [q for q in self.asked if q not in self.answers]

    def ask(self, questions: Sequence[Question], phase: Phase) -> None:
        """Write down new questions. Raises: ValueError if one was asked before."""
        for question in questions:
            if question in self.asked:
                raise ValueError(f"update {question[0]}, prompt {question[1]} was asked before")
            self.asked[question] = phase

    def is_confirming(self) -> bool:
        """Whether the confirmation was asked."""
        return "confirm" in self.asked.values()

    def num_asked(self, update: int) -> int:
        """How many duels of this checkpoint were asked."""
        return sum(1 for q in self.asked if q[0] == update)

    def tally(self, distances: dict[int, float]) -> Tally:
        """Count the answers. distances: update to distance, the reference (update 0) left out."""
        updates = tuple(sorted(distances))
        place = {update: i for i, update in enumerate(updates)}
        wins, counts = np.zeros(len(updates)), np.zeros(len(updates))
        sums: dict[str, list[float]] = {phase: [0.0, 0] for phase in get_args(Phase)}
        for question, outcome in self.answers.items():
            if outcome is None:
                continue
            wins[place[question[0]]] += outcome
            counts[place[question[0]]] += 1
            sums[self.asked[question]][0] += outcome
            sums[self.asked[question]][1] += 1
        confirmed = [q[0] for q, phase in self.asked.items() if phase == "confirm"]
        return Tally(
            updates_S=updates,
            distances_S=np.array([distances[u] for u in updates], dtype=np.float64),
            wins_S=wins,
            counts_S=counts,
            chosen_wins=sums["focus"][0] + sums["confirm"][0],
            chosen_count=int(sums["focus"][1] + sums["confirm"][1]),
            confirm_update=confirmed[0] if confirmed else None,
            confirm_wins=sums["confirm"][0],
            confirm_count=int(sums["confirm"][1]),
            num_labels=len(self.answers),
        )


def first_pass(updates: Sequence[int], num_duels: int) -> list[int]:
    """Spread `num_duels` over the checkpoints as evenly as can be; the later get the remainder.

    Returns one update per duel, the checkpoints taking turns.

    >>> first_pass([10, 20, 30], 7)
    [10, 20, 30, 10, 20, 30, 30]
    """
    rounds, rest = divmod(num_duels, len(updates))
    return list(updates) * rounds + list(updates[len(updates) - rest :])


def focused(fit: StackedFit, num_duels: int, rng: np.random.Generator) -> list[int]:
    """Choose checkpoints by where curves drawn from the posterior peak (Thompson sampling).

    Returns one index into the fit's checkpoints per duel, in ascending order.

    Source: Russo et al. (2018), A Tutorial on Thompson Sampling, sec. 4.
    """
    return sorted(int(i) for i in fit.sample(num_duels, rng).argmax(axis=1))


def with_prompts(
    book: DuelBook,
    wanted: Sequence[int],
    updates: Sequence[int],
    num_prompts: int,
    seed: int,
    *,
    may_pass: bool,
    num_kept: int = 0,
) -> list[Question]:
    """Give each wanted checkpoint its next prompt.

    Each checkpoint goes through the prompts in its own order, drawn from (seed, update).
    may_pass: whether a checkpoint that has no prompt left passes the duel to the nearest one that
    has; otherwise the duel is left out. num_kept: prompts of each checkpoint that stay unused.
    """
    num_free = num_prompts - num_kept
    used = {u: book.num_asked(u) for u in updates}
    orders: dict[int, list[int]] = {}
    place = {u: i for i, u in enumerate(updates)}
    questions: list[Question] = []
    for update in wanted:
        free = [u for u in (updates if may_pass else (update,)) if used[u] < num_free]
        if not free:
            continue
        chosen = min(free, key=lambda u: (abs(place[u] - place[update]), u))
        if chosen not in orders:
            rng = np.random.default_rng([seed, chosen])
            orders[chosen] = [int(i) for i in rng.permutation(num_prompts)]
        questions.append((chosen, orders[chosen][used[chosen]]))
        used[chosen] += 1
    return questions
