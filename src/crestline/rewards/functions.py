"""A user's Python function as a reward, in TRL's contract and in OpenRLHF's.

Owns calling it and distrusting what it returns. Knows nothing of how it was found and of who else scores.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from numbers import Real
from typing import Any

from crestline.models.text import render_prompt
from crestline.types import BadInput, Paused, Prompt

OURS = ("prompts", "completions")
"""Names of arguments; columns of these names are not handed on."""


class FunctionReward:
    """f(prompts, completions, **columns) -> list[float | None], as TRL calls it.

    Where prompts are chats, completions are lists of one assistant message. columns: the other columns of the
    prompts, a list each; a function without **columns gets those that it names. Everything is a copy: what the
    function does to it changes nothing.
    """

    def __init__(self, function: Callable[..., Any], description: str) -> None:
        self.function, self.description = function, description
        self.name = getattr(function, "__name__", description)
        accepted = inspect.signature(function).parameters.values()
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted)
        self._names = {p.name for p in accepted if p.kind is not p.POSITIONAL_ONLY}

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
        """What the function says. Raises Paused if it fails, BadInput if it returns no list of numbers."""
        passed = {
            name: [deepcopy(prompt.columns.get(name)) for prompt in prompts]
            for name in sorted({name for prompt in prompts for name in prompt.columns})
            if (self._takes_all or name in self._names) and name not in OURS
        }
        answered = [
            text if isinstance(prompt.text, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, completions, strict=True)
        ]
        returned = called(
            self.function,
            self.description,
            prompts=[deepcopy(prompt.text) for prompt in prompts],
            completions=answered,
            **passed,
        )
        return numbers(returned, len(completions), self.description)


class QueryReward:
    """reward_func(queries, prompts, labels) -> numbers, or a dict that holds them as "rewards", as OpenRLHF calls it.

    queries: prompt and completion in one text, by the policy's chat template. labels: a column of the prompts.
    """

    def __init__(
        self, function: Callable[..., Any], description: str, tokenizer: Any, label_key: str
    ) -> None:
        self.function, self.description = function, description
        self.name = getattr(function, "__name__", description)
        self.tokenizer, self.label_key = tokenizer, label_key

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
        """What the function says. Raises as `FunctionReward.judge`."""
        returned = called(
            self.function,
            self.description,
            **queries_of(prompts, completions, self.tokenizer, self.label_key),
        )
        return numbers(rewards_in(returned, self.description), len(completions), self.description)


def queries_of(
    prompts: Sequence[Prompt], completions: Sequence[str], tokenizer: Any, label_key: str
) -> dict[str, list[Any]]:
    """What OpenRLHF's contract is called with: queries, prompts and labels."""
    rendered = [render_prompt(tokenizer, prompt.text) for prompt in prompts]
    return {
        "queries": [text + said for text, said in zip(rendered, completions, strict=True)],
        "prompts": rendered,
        "labels": [deepcopy(prompt.columns.get(label_key, "")) for prompt in prompts],
    }


def rewards_in(returned: Any, who: str) -> Any:
    """The rewards of what OpenRLHF's contract returns: a dict, a list, or an array."""
    if not isinstance(returned, Mapping):
        return returned
    if "rewards" not in returned:
        raise BadInput(f"{who}: returned no 'rewards', but {', '.join(map(str, returned))}")
    return returned["rewards"]


def called(function: Callable[..., Any], who: str, /, **arguments: Any) -> Any:
    """What the function returns. Raises Paused with its error if it fails or exits."""
    try:
        return function(**arguments)
    except (Exception, SystemExit) as error:
        raise Paused(
            f"{who} failed: {type(error).__name__}: {error}; mend it and run the same command again: "
            "it goes on from the last checkpoint"
        ) from error


def numbers(returned: Any, expected: int, who: str) -> list[float | None]:
    """The values as a list of floats and None. Raises BadInput if they are anything else."""
    if hasattr(returned, "tolist"):  # arrays and tensors
        returned = returned.tolist()
    if not isinstance(returned, list | tuple):
        raise BadInput(
            f"{who}: returned {type(returned).__name__}; expected a list of {expected} numbers"
        )
    if len(returned) != expected:
        raise BadInput(f"{who}: returned {len(returned)} values for {expected} completions")
    values: list[float | None] = []
    for place, value in enumerate(returned):
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, list | tuple) and len(number) == 1:
            number = number[0]
        if number is not None and (not isinstance(number, Real) or not math.isfinite(number)):
            raise BadInput(f"{who}: value {place} is {value!r}; expected a finite number or None")
        values.append(None if number is None else float(number))
    return values
