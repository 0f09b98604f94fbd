"""The watch: takes observations of checkpoints, asks for duels, takes answers, gives a verdict.

Owns the conversation with whoever runs it. Knows nothing of models, files, people or our trainer:
any trainer that can name its checkpoints can use it.

Every question depends only on the config, the observations and the answers to earlier batches. A
run that was killed makes a new watch, observes the same checkpoints, gives it the stored answers in
the order they were stored, and is asked the same questions again.

A watch that asks while training goes on would plug in at `Watch.observe`: observations may arrive
between batches, and a checkpoint seen late gets its share of the first pass before anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from typing import Any

import numpy as np

from crestline.crest.configs import WatchConfig
from crestline.crest.duels import (
    PASSED_ON,
    DuelBook,
    Phase,
    Question,
    first_pass,
    focused,
    with_prompts,
)
from crestline.crest.verdict import NUM_CURVES, decide, judge
from crestline.types import Duel, Observation, Verdict


class Watch:
    """Finds the crest of one run from duels against the reference.

    num_prompts: how many held-out prompts every checkpoint and the reference answered; a duel is
    asked on each prompt of a checkpoint at most once.

    >>> watch = Watch(WatchConfig(num_labels=8), num_prompts=16)
    >>> watch.observe(Observation(update=40, distance=0.8, proxy=0.7))
    >>> [update for update, _ in watch.next_duels()]
    [40, 40]
    """

    def __init__(self, config: WatchConfig, num_prompts: int) -> None:
        if num_prompts < 1:
            raise ValueError(f"num_prompts must be at least 1, not {num_prompts}")
        self.config = config
        self.num_prompts = num_prompts
        self._observations: dict[int, Observation] = {}
        self._book = DuelBook()

    # ------------------------------------------------------------ what the user calls

    def observe(self, observation: Observation) -> None:
        """Take note of a checkpoint. Update 0, the reference, is accepted and not duelled.

        Raises: ValueError if the distance is NaN, infinite or negative, the update is negative, or
        the update was observed before with another distance.
        """
        distance, update = observation.distance, observation.update
        if not isfinite(distance) or distance < 0:
            raise ValueError(f"update {update}: distance must be finite and >= 0, not {distance}")
        if update < 0:
            raise ValueError(f"update must be >= 0, not {update}")
        known = self._observations.get(update)
        if known is not None and known.distance != distance:
            raise ValueError(f"update {update} was observed before at distance {known.distance}")
        self._observations[update] = observation

    def next_duels(self) -> list[Question]:
        """The (update, prompt_index) of the duels to ask now; empty when there is no more to ask.

        A batch is repeated, less what has been answered, until all of it is answered.
        """
        pending = self._book.pending()
        if pending:
            return pending
        self._plan()
        return self._book.pending()

    def answer(self, duel: Duel) -> None:
        """Take the answer to a duel that was asked. Asking first is not needed: an answer to a
        question of the next batch plans that batch, so stored answers can be replayed in order.

        Raises: ValueError if the duel is not one of the next, or the outcome is not 0, 0.5 or 1.
        """
        if duel.outcome not in (0.0, 0.5, 1.0):
            raise ValueError(f"outcome must be 0, 0.5 or 1, not {duel.outcome}")
        self._record((duel.update, duel.prompt_index), float(duel.outcome))

    def not_ranked(self, update: int, prompt_index: int) -> None:
        """Take note that whoever was asked did not rank this duel. The label is spent.

        Raises: ValueError if the duel is not one of the next.
        """
        self._record((update, prompt_index), None)

    def verdict(self, answered_by: str) -> Verdict:
        """The verdict on the answers so far. answered_by: who answered, e.g. "simulated people"."""
        return decide(
            self._book.tally(self._distances()),
            confidence=self.config.confidence,
            min_duels=self.config.min_duels,
            answered_by=answered_by,
            seed=self.config.watch_seed,
        )

    def state(self) -> dict[str, Any]:
        """All that `load` needs, as plain JSON values."""
        return {
            "config": asdict(self.config),
            "num_prompts": self.num_prompts,
            "observations": [
                {
                    "update": o.update,
                    "distance": o.distance,
                    "proxy": o.proxy,
                    "signals": dict(o.signals),
                }
                for o in self._observations.values()
            ],
            "asked": [[*question, phase] for question, phase in self._book.asked.items()],
            "answers": [[*question, value] for question, value in self._book.answers.items()],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Replace everything seen, asked and answered by a saved state.

        Raises: ValueError if the state is of a watch with another config or number of prompts.
        """
        if state["config"] != asdict(self.config) or state["num_prompts"] != self.num_prompts:
            raise ValueError("the saved watch has another config or another number of prompts")
        self._observations = {o["update"]: Observation(**o) for o in state["observations"]}
        book = DuelBook()
        for update, prompt_index, phase in state["asked"]:
            book.ask([(int(update), int(prompt_index))], phase)
        book.answers = {(int(u), int(i)): value for u, i, value in state["answers"]}
        self._book = book

    # ------------------------------------------------------------ planning

    def _distances(self) -> dict[int, float]:
        return {u: o.distance for u, o in self._observations.items() if u != 0}

    def _record(self, question: Question, outcome: float | None) -> None:
        if not self._book.pending():
            self._plan()
        if question not in self._book.asked or question in self._book.answers:
            raise ValueError(
                f"update {question[0]}, prompt {question[1]} is not among the duels to ask now"
            )
        self._book.answers[question] = outcome

    def _plan(self) -> None:
        """Ask the next batch, if any. Called only when every question so far is answered."""
        updates = sorted(self._distances())
        left = self.config.num_labels - len(self._book.asked)
        if not updates or left <= 0:
            return
        missing = self._first_pass_missing(updates)
        if missing:
            self._ask("first", missing[:left], updates)
            return
        self._plan_later(updates, left)

    def _first_pass_missing(self, updates: list[int]) -> list[int]:
        """The updates still owed duels of the first pass, one entry per duel.

        At most a quarter of the prompts of a checkpoint, so that some are left to follow up.
        """
        share = int(self.config.first_share * self.config.num_labels)
        share = min(share, len(updates) * max(1, self.num_prompts // 4))
        have = {u: self._book.num_asked(u) for u in updates}
        missing = []
        for update in first_pass(updates, share):
            if have[update] > 0:
                have[update] -= 1
            else:
                missing.append(update)
        return missing

    def _plan_later(self, updates: list[int], left: int) -> None:
        """A batch near the supposed peak; the confirmation of what would ship once the rest of the
        labels is spent, or near the peak no prompt is left. Nothing follows the confirmation.
        """
        if self._book.is_confirming():
            return
        config = self.config
        rng = np.random.default_rng([config.watch_seed, 2, len(self._book.asked)])
        tally = self._book.tally(self._distances())
        fit = tally.fit()
        judgement = judge(tally, fit, fit.sample(NUM_CURVES, rng), config.confidence)
        to_confirm = min(left, self._num_to_confirm())
        num_duels = min(config.num_duels_per_batch, left - to_confirm)
        in_doubt = 0.02 < judgement.decline < 0.98
        num_last = int(config.last_share * num_duels) if in_doubt else 0
        places = focused(fit, num_duels - num_last, rng)
        means = fit.mean()
        near = means >= means.max() - abs(means.max()) / 2
        self._ask("focus", [updates[i] for i in places if near[i]], updates)
        self._ask("explore", [updates[i] for i in places if not near[i]], updates)
        self._ask("last", [updates[-1]] * num_last, updates)
        if not self._book.pending():
            self._ask("confirm", [updates[judgement.ship]] * to_confirm, updates)

    def _num_to_confirm(self) -> int:
        return round(self.config.confirm_share * self.config.num_labels)

    def _num_kept(self) -> int:
        """The prompts of each checkpoint that are kept for the confirmation: a quarter at most, and
        none where that is too few for a confirmation to count.
        """
        kept = min(self._num_to_confirm(), self.num_prompts // 4)
        return kept if kept >= self.config.min_duels else 0

    def _ask(self, phase: Phase, wanted: list[int], updates: list[int]) -> None:
        questions = with_prompts(
            self._book,
            wanted,
            updates,
            self.num_prompts,
            self.config.watch_seed,
            may_pass=phase in PASSED_ON,
            num_kept=0 if phase == "confirm" else self._num_kept(),
        )
        self._book.ask(questions, phase)
