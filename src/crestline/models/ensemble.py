"""Reward models that answer together: each with its own backbone and tokenizer, on one scale, as one score.

Owns the scale and the folder of an ensemble. Knows nothing of training and rankings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crestline.formulas.ensemble import Aggregate, aggregated
from crestline.models.calibration import Calibration
from crestline.models.encoding import Row
from crestline.models.reload import check_reloaded
from crestline.models.reward_model import RewardModel
from crestline.types import BadInput, PromptText

ENSEMBLE_FILE = "ensemble.json"


@dataclass(frozen=True, slots=True)
class EnsembleRow:
    """One text as each member reads it."""

    members: tuple[Row, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that all members read together."""
        return sum(row.num_tokens for row in self.members)

    @property
    def is_truncated(self) -> bool:
        """Whether it was too long for any member."""
        return any(row.is_truncated for row in self.members)


class RewardEnsemble:
    """M reward models as one. Text is the interface: members may differ in backbone and tokenizer.

    A member's score counts as (raw - mean) / temperature of its own calibration: Bradley–Terry scores have no zero
    and no unit, so the smallest of several raw scores would mean nothing.
    """

    def __init__(
        self,
        members: Sequence[RewardModel],
        *,
        aggregate: Aggregate = "mean",
        uwo_coefficient: float = 0.1,
        calibration: Calibration | None = None,
    ) -> None:
        if not members:
            raise ValueError("an ensemble needs members")
        self.members = list(members)
        self.aggregate, self.uwo_coefficient = aggregate, uwo_coefficient
        self.calibration = calibration or Calibration()

    @property
    def num_members(self) -> int:
        return len(self.members)

    @property
    def max_length(self) -> int:
        """Tokens that every member can read."""
        return min(member.max_length for member in self.members)

    def rows(self, prompts: Sequence[PromptText], completions: Sequence[str]) -> list[EnsembleRow]:
        """Each prompt with its completion as each member reads it."""
        columns = [member.rows(prompts, completions) for member in self.members]
        return [EnsembleRow(row) for row in zip(*columns, strict=True)]

    def members_of_rows(self, rows: Sequence[EnsembleRow]) -> NDArray[np.float64]:
        """`member_scores` of rows that `rows` made."""
        columns = []
        for place, member in enumerate(self.members):
            own = member.members_of_rows([row.members[place] for row in rows])
            columns.append(member.calibration.log_odds(member.aggregated(own)))
        return np.stack(columns, axis=1)

    def aggregated(self, members_NM: NDArray[np.float64]) -> NDArray[np.float64]:
        """One raw score [N] of `member_scores`."""
        return aggregated(members_NM, self.aggregate, self.uwo_coefficient)

    def member_scores(
        self, prompts: Sequence[PromptText], completions: Sequence[str]
    ) -> NDArray[np.float64]:
        """Scores [N, M] of each member on one scale: log-odds of being preferred to a typical completion."""
        return self.members_of_rows(self.rows(prompts, completions))

    def score(self, prompts: Sequence[PromptText], completions: Sequence[str]) -> list[float]:
        """Raw score of each completion to its prompt: the members' scores aggregated, in log-odds."""
        found: list[float] = self.aggregated(self.member_scores(prompts, completions)).tolist()
        return found

    def write(self, folder: Path) -> None:
        """Write ensemble.json and a plain folder for each member, without looking back."""
        names = [f"member-{number}" for number in range(self.num_members)]
        for name, member in zip(names, self.members, strict=True):
            member.write(folder / name)
        stored = {
            "members": names,
            "aggregate": self.aggregate,
            "uwo_coefficient": self.uwo_coefficient,
            "mean": self.calibration.mean,
            "temperature": self.calibration.temperature,
        }
        text = json.dumps(stored, indent=2) + "\n"
        (folder / ENSEMBLE_FILE).write_text(text, encoding="utf-8")

    def save(
        self,
        folder: Path,
        prompts: Sequence[PromptText],
        completions: Sequence[str],
        *,
        adapter: Path | None = None,
    ) -> None:
        """Write the folder, and let one fresh process score some of these rows with every member.

        adapter: also write the members' adapters there, and check them too.
        Raises BadInput, one line, if a member scores differently there.
        """
        self.write(folder)
        checks = []
        for number, member in enumerate(self.members):
            name = f"member-{number}"
            checks.append(member.check(folder / name, prompts, completions))
            if adapter:
                member.write_adapter(adapter / name)
                checks.append(member.adapter_check(checks[-1], adapter / name))
        check_reloaded(checks)


def read_ensemble(folder: Path) -> dict[str, Any] | None:
    """What ensemble.json says; None where the folder is no ensemble's. Raises BadInput if it makes no sense."""
    path = folder / ENSEMBLE_FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        members = [str(name) for name in found["members"]]
        if not members or found["aggregate"] not in ("mean", "min", "uwo"):
            raise ValueError("no members, or an unknown aggregate")
        return {
            "members": [folder / name for name in members],
            "aggregate": found["aggregate"],
            "uwo_coefficient": float(found["uwo_coefficient"]),
            "calibration": Calibration.stored(found),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is damaged ({error}); write it anew") from None
