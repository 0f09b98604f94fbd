"""Settings of what RL is rewarded for, and how. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RewardSources:
    """Who scores completions beside the reward model, or without one."""

    reward_funcs: str = ""
    """module.py:function, several separated by commas: f(prompts, completions, **columns) -> list[float | None]."""
    remote_rm_url: str = ""
    """A server's /get_reward, or module.py:function with reward_func(queries, prompts, labels), as OpenRLHF has it."""
    label_key: str = "label"
    """Column of the prompts that remote_rm_url gets as labels; empty text where there is none."""
    reward_weights: str = ""
    """Weights of reward model, functions and server, in this order, separated by commas; empty: 1 each."""

    def __post_init__(self) -> None:
        try:
            _ = self.weights
        except ValueError:
            raise ValueError(
                f"reward_weights must be numbers separated by commas, got {self.reward_weights!r}"
            ) from None

    @property
    def functions(self) -> list[str]:
        """Each of reward_funcs."""
        return [part.strip() for part in self.reward_funcs.split(",") if part.strip()]

    @property
    def weights(self) -> list[float]:
        """Each of reward_weights."""
        return [float(part) for part in self.reward_weights.split(",") if part.strip()]

    @property
    def query_function(self) -> str:
        """The module.py:function of remote_rm_url; empty where it names a server or nothing."""
        given = self.remote_rm_url
        if not given or given.startswith(("http://", "https://")):
            return ""
        return given if ".py:" in given else f"{given}:reward_func"


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """What happens to a score before it is a reward: against overoptimisation, length and rare outliers."""

    reward_shaping: Literal["auto", "raw", "centered", "par"] = "auto"
    """raw: the score; centered: minus what the reference's own completions of this prompt score on average; par: the
    calibrated probability of being better than one of those, which is bounded (Fu et al. 2025). auto: par where a
    reward model alone scores, else raw."""
    num_reference_completions: int = 4
    """Completions of the reference for each prompt that centered and par compare with; sampled once."""
    normalize_rewards: bool = False
    """Standardise by running mean and deviation over the run."""
    reward_clip_range: float = 0.0
    """Rewards are clipped to plus and minus this; 0 does not clip."""
    length_penalty: float = 0.0
    """Taken off for each token of a completion."""
    missing_eos_penalty: float = 0.0
    """Taken off where a completion ran out of room."""

    def __post_init__(self) -> None:
        if self.num_reference_completions < 1:
            raise ValueError(
                f"num_reference_completions must be at least 1, got {self.num_reference_completions}"
            )
        for name in ("reward_clip_range", "length_penalty", "missing_eos_penalty"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
