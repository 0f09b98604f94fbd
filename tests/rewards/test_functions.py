"""A reward function that fails pauses the run; one that is interrupted does not."""

from typing import Any

import pytest

from crestline.rewards.functions import FunctionReward
from crestline.types import Paused, Prompt


def scored(error: BaseException) -> None:
    def score(prompts: list[Any], completions: list[Any]) -> list[float]:
        raise error

    FunctionReward(score, "the function f").judge([Prompt(text="p")], ["a"])


@pytest.mark.parametrize("error", [KeyError("taste"), SystemExit(), SystemExit(0)])
def test_a_failure_pauses(error: BaseException) -> None:
    with pytest.raises(Paused, match=rf"the function f failed: {type(error).__name__}"):
        scored(error)


def test_an_interruption_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        scored(KeyboardInterrupt())
