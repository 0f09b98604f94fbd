"""What RL raised, as page and card may call it: a reward model's score, or what functions or a server gave.

Owns these names. A run that no reward model took part in is never told as if there had been one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crestline.report.words import inert

MODEL = "reward model"


@dataclass(frozen=True, slots=True)
class Rewarded:
    """by: who scored, such as "reward model", "function rewards.py:brevity"; empty where that is not known."""

    by: tuple[str, ...]

    @property
    def may_be_learned(self) -> bool:
        """Whether a reward model took part, as far as is known."""
        return MODEL in self.by or not self.by

    @property
    def score(self) -> str:
        """The number that training raised.

        >>> Rewarded(("reward model",)).score, Rewarded(("function rf.py:big",)).score
        ("the reward model's score", 'the reward')
        """
        return "the reward model's score" if self.by == (MODEL,) else "the reward"

    @property
    def told(self) -> str:
        """The same with who gave it.

        >>> Rewarded(("reward model", "function rf.py:big")).told
        'the reward (reward model + function rf.py:big)'
        """
        return self.score if self.by in ((), (MODEL,)) else f"the reward ({' + '.join(self.by)})"


def rewarded(rl_config: Mapping[str, Any]) -> Rewarded:
    """Who scored, by the settings of RL. Of a function the file's name is told, of a server no address.

    >>> rewarded({"reward_sources": {"reward_funcs": "/home/me/rf.py:big"}}).by
    ('function rf.py:big',)
    """
    given = rl_config.get("reward_sources")
    sources = given if isinstance(given, Mapping) else {}
    functions, remote = (str(sources.get(key) or "") for key in ("reward_funcs", "remote_rm_url"))
    by = [MODEL] if rl_config.get("reward_model_name_or_path") else []
    by += [_function(part) for part in functions.split(",") if part.strip()]
    if remote.startswith(("http://", "https://")):
        by.append("remote reward server")
    elif remote:
        by.append(_function(remote))
    return Rewarded(tuple(by))


def _function(named: str) -> str:
    return f"function {inert(named.strip().rsplit('/', 1)[-1], 120)}"
