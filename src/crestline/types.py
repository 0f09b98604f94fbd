"""The nouns that travel between parts, and the protocols that join them.

Owns plain frozen records and `BadInput`. Knows nothing of torch, files or models, so that
JSON, SQL and Ray can carry every record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Message = dict[str, str]
"""One chat message: {"role": "user" | "assistant" | "system", "content": text}."""

PromptText = str | list[Message]
"""What is asked: plain text (continued as it stands) or chat messages (rendered by the chat template)."""

AnsweredBy = Literal["people", "simulated people", "function", "stand-in"]
VerdictKind = Literal["peaked", "still_rising", "nothing_beats_reference", "not_measured"]
StopReason = Literal["end", "length"]


class BadInput(Exception):
    """The user's input cannot be used: one line saying what, where and what to do. Exit code 2."""

    def __str__(self) -> str:  # names out of the user's files may hold line breaks
        return " ".join(super().__str__().splitlines())


class NotFinite(BadInput):
    """A policy's logits are not finite numbers: who only samples is told, training goes back to a good checkpoint."""


class Paused(Exception):
    """The run stopped at a good state and can be resumed: health, or waiting for people. Exit code 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One thing to ask, with the other columns of its row."""

    text: PromptText
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt and the completion to imitate."""

    prompt: PromptText
    completion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the policy answered.

    tokens: ids the model chose, the end token included when it chose it.
    logprobs: natural-log probability of each chosen token under the sampling policy.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop: StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """One person's order of K completions to one prompt.

    ranks: one entry per completion, 0 is best, equal is a tie, None is "not ranked".
    margin: how much better the better of two is, in raw score units; pairs only, None where nobody said.
    source: the data set that it came from, for figures by source; empty where nobody said.
    """

    prompt: PromptText
    completions: tuple[str, ...]
    ranks: tuple[int | None, ...]
    annotator: str = ""
    answered_by: str = ""
    margin: float | None = None
    source: str = ""
    where: str = ""
    """File and line it came from, for messages; empty if it never was in a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A checkpoint as the watch sees it.

    distance: sqrt of KL(policy‖reference) in nats; proxy: mean calibrated score in [0, 1].
    """

    update: int
    distance: float
    proxy: float
    signals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """One comparison that the watch asked for: checkpoint `update` against the reference on one prompt.

    outcome: 1 the checkpoint won, 0 it lost, 0.5 a tie.
    """

    update: int
    prompt_index: int
    outcome: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """The fitted curve at one checkpoint: estimated win rate against the reference, with a 90 % interval."""

    update: int
    distance: float
    win_rate: float
    low: float
    high: float
    num_duels: int
    num_wins: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the watch decided, and why.

    update: the checkpoint to ship; None ships nothing. interval: updates that hold the crest with 90 %.
    """

    kind: VerdictKind
    update: int | None
    interval: tuple[int, int] | None
    distance: float | None
    win_rate: float | None
    win_rate_interval: tuple[float, float] | None
    num_labels: int
    answered_by: str
    reason: str
    curve: tuple[CurvePoint, ...] = ()


class People(Protocol):
    """Whoever ranks. What kind answered is always recorded and shown."""

    answered_by: AnsweredBy
    description: str

    def rank(
        self, prompt: PromptText, completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        """Value of each completion: higher is better, equal is a tie, None is "not ranked"."""
        ...


Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called with (done, of how many, metrics). In training (update, number of updates, metrics), after every update and
before its checkpoint: again if it is redone."""


def silent(done: int, total: int, metrics: Mapping[str, float]) -> None:
    """Progress that shows nothing."""


class Sampler(Protocol):
    """Samples completions from a policy; each has its own random stream, named by its seed.

    temperature: what logits are divided by. max_completion_length: tokens.
    """

    temperature: float
    max_completion_length: int

    def sample(self, prompts: Sequence[PromptText], seeds: Sequence[int]) -> list[Completion]:
        """One completion for each prompt. Raises NotFinite where the policy's logits are not finite numbers."""
        ...

    def encode(self, prompts: Sequence[PromptText]) -> list[list[int]]:
        """Token ids of each prompt. Raises BadInput for one that leaves no room for a completion."""
        ...

    def refresh(self) -> None:
        """Take the policy's current weights; call after every update."""
        ...
