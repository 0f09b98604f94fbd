"""When a run pauses rather than train on garbage, and what may then be changed. Torch-free.

Owns thresholds, streaks and the one line that says which flag to change. Knows nothing of models and losses: it reads
metrics by their names, and a check whose metrics an update lacks does not change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from crestline.types import Paused

PAUSED_FILE = "paused.json"
"""In a run folder: why and where it paused. While it is there, the settings in `CHANGEABLE` may change."""
CHANGEABLE = (
    "health",
    "kl",
    "temperature",
    "optimization.learning_rate",
    "optimization.max_grad_norm",
    "shaping.length_penalty",
    "shaping.missing_eos_penalty",
)
RECENT = 20
"""Updates whose median gradient stands for what is normal."""
LOOKS, SPIKES = 5, 2
"""Looks at KL whose median stands for what is normal, and looks in a row that must be too high."""
UNUSUAL, SURPRISE = 1e-3, 1e-6
"""A streak of collapsed groups that is less likely than this may be no chance, and is none."""


class Unhealthy(Paused):
    """A run that would train on garbage. advice: what to change."""

    def __init__(self, update: int, what: str, advice: str) -> None:
        super().__init__(f"update {update}: {what}; {advice} and run the same command again")
        self.update = update


def wild_policy(update: int) -> Unhealthy:
    """A policy that no one can sample from any more."""
    return Unhealthy(
        update,
        "the policy's logits are not finite numbers",
        "lower --learning_rate or --max_grad_norm (or raise --temperature if it is tiny)",
    )


@dataclass(frozen=True, kw_only=True)
class Health:
    """When a run pauses rather than train on garbage; exit code 3, and the same command goes on."""

    health_patience: int = 10
    """Updates in a row that must look wrong; 0 never pauses but for what is not finite."""
    max_collapsed_groups: float = 0.95
    """Share of groups whose completions all get the same reward, where that was rarer before. 1 allows it."""
    max_truncated: float = 0.95
    """Share of completions that run out of room, where most ended at first. 1 allows it."""
    min_mean_length: float = 1.5
    """Tokens of a completion, where they were longer at first: below, the policy just ends. 0 allows it."""
    max_kl_jump: float = 10.0
    """KL may become so many times its recent median plus as many nats, at two looks in a row. 0 allows all."""
    max_grad_growth: float = 30.0
    """The gradient's norm may become so many times its recent median. 0 allows all."""

    def __post_init__(self) -> None:
        for name in vars(self):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


@dataclass
class Streak:
    """How likely it is that something happens so many times in a row, judged by how often it did and didn't before.

    An urn (Pólya's) begins with one ball for it and three against; each draw adds a ball of what was drawn. So a streak
    from the very start proves little, and one of what has always been frequent less than one of what was rare.
    """

    happened: int = 1
    failed: int = 3
    chance: float = 1.0
    """Of a streak as long as the present one, when it began; 1 where there is none."""

    def see(self, happens: bool) -> None:
        if happens:
            self.chance *= self.happened / (self.happened + self.failed)
            self.happened += 1
        else:
            self.chance = 1.0
            self.failed += 1


class Watchdog:
    """Looks at every update's metrics; its state travels in the checkpoints.

    verified: the latest update whose weights have proved good: the update after it looked healthy. norms: recent ones
    of gradients that were not 0; where rewards are rare, most are.
    """

    def __init__(self, config: Health) -> None:
        self.config = config
        self.verified = 0
        self.streaks: dict[str, int] = {}
        self.first: dict[str, float] = {}
        self.norms: list[float] = []
        self.kls: list[float] = []
        self.collapse = Streak()

    def look(self, update: int, metrics: Mapping[str, float]) -> None:
        """Raises Unhealthy when something has looked wrong for too long."""
        if not self.config.health_patience:
            self.verified = update - 1
            return
        for key in ("completions/clipped_ratio", "completions/mean_length"):
            if key in metrics:
                self.first.setdefault(key, metrics[key])
        if (share := metrics.get("frac_reward_zero_std")) is not None:
            self.collapse.see(share > self.config.max_collapsed_groups)
        for check, is_wrong, patience, what, advice in self._checks(metrics):
            self.streaks[check] = self.streaks.get(check, 0) + 1 if is_wrong else 0
            if self.streaks[check] >= patience:
                raise Unhealthy(update, what, advice)
        if not any(self._is_suspicious(check, n) for check, n in self.streaks.items()):
            self.verified = update - 1
        if metrics.get("grad_norm") and not self.streaks.get("gradient"):
            self.norms = [*self.norms[-RECENT + 1 :], metrics["grad_norm"]]
        if "kl" in metrics and not self.streaks.get("kl"):
            self.kls = [*self.kls[-LOOKS + 1 :], metrics["kl"]]

    def _is_suspicious(self, check: str, streak: int) -> bool:
        """Whether what has looked wrong for so long speaks against the checkpoints since."""
        by_chance = check == "groups" and self.collapse.chance > UNUSUAL
        return streak > 0 and not (by_chance and streak > self.config.health_patience)

    def _checks(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, bool, int, str, str]]:
        """(name, whether it looks wrong, for how many updates it may, what is wrong, what to change)."""
        config, patience = self.config, self.config.health_patience
        if (share := metrics.get("frac_reward_zero_std")) is not None:
            streak = self.streaks.get("groups", 0) + 1
            yield (
                "groups",
                self.collapse.chance < 1,
                patience if self.collapse.chance < SURPRISE else streak + 1,
                f"all completions of a prompt get the same reward in {share:.0%} of the groups, for {streak} "
                "updates: nothing is left to learn from",
                "raise --temperature, or --beta against a collapse",
            )
        if (share := metrics.get("completions/clipped_ratio")) is not None:
            yield (
                "truncated",
                share > config.max_truncated and self.first["completions/clipped_ratio"] < 0.5,
                patience,
                f"{share:.0%} of the completions do not end, for {patience} updates, and most did at first",
                "give --missing_eos_penalty or --length_penalty",
            )
        if (length := metrics.get("completions/mean_length")) is not None:
            first = self.first["completions/mean_length"]
            yield (
                "empty",
                length < config.min_mean_length < first,
                patience,
                f"completions have {length:.1f} tokens on average, for {patience} updates, and had {first:.1f}",
                "lower --learning_rate or --length_penalty",
            )
        if "kl" in metrics and config.max_kl_jump:
            most = config.max_kl_jump * (max(0.0, median(self.kls or [0.0])) + 1)
            yield (
                "kl",
                metrics["kl"] > most,
                SPIKES,
                f"KL jumped to {metrics['kl']:.0f} nats from a median of {median(self.kls or [0.0]):.2f}",
                "lower --learning_rate or raise --beta",
            )
        if "grad_norm" in metrics and config.max_grad_growth and len(self.norms) >= RECENT // 2:
            normal = median(self.norms)
            yield (
                "gradient",
                metrics["grad_norm"] > config.max_grad_growth * normal,
                patience,
                f"the gradient's norm is {metrics['grad_norm']:.3g}, for {patience} updates far above its median "
                f"of {normal:.3g}",
                "lower --learning_rate",
            )

    def state(self) -> dict[str, Any]:
        return {
            "verified": self.verified,
            "streaks": dict(self.streaks),
            "first": dict(self.first),
            "norms": list(self.norms),
            "kls": list(self.kls),
            "collapse": asdict(self.collapse),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.verified, self.streaks = state["verified"], dict(state["streaks"])
        self.first = dict(state["first"])
        self.norms = [norm for norm in state["norms"] if norm]  # older versions kept zeros
        self.kls = list(state["kls"])
        self.collapse = Streak(**state.get("collapse", {}))  # older versions kept none


def refuse_nonfinite(update: int, metrics: Mapping[str, float]) -> None:
    """Raises Unhealthy naming the first metric of a batch that is no finite number."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            scored = name.startswith(("reward", "objective"))
            advice = "mend what scores" if scored else "lower --learning_rate"
            raise Unhealthy(update, f"{name} is {value}", advice)


def may_change(folder: str | Path, prefix: str = "") -> tuple[str, ...]:
    """Dotted keys of the settings that may change when the stage in this folder goes on.

    Who is told the metrics always may, and while it is paused what cures the pause.
    """
    paused = (Path(folder) / PAUSED_FILE).exists()
    return tuple(prefix + key for key in ("tracking", *(CHANGEABLE if paused else ())))
