"""A user's Python function as people: `--people module.py:function`.

Owns loading the function and distrusting what it returns. Knows nothing of who calls it and why.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from numbers import Real
from typing import Any

from crestline.data.code import load_function
from crestline.types import AnsweredBy, BadInput, Paused, PromptText

SIGNATURE = "(prompt, completions, **columns)"


class FunctionPeople:
    """Asks a function `rank(prompt, completions, **columns) -> list[float | None]`.

    Higher is better, equal is a tie, None is "not ranked". A function without `**columns` gets the
    columns that it names.
    """

    answered_by: AnsweredBy = "function"

    def __init__(self, function: Callable[..., Any], description: str) -> None:
        self.function, self.description = function, description
        accepted = inspect.signature(function).parameters.values()
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted)
        self._names = {p.name for p in list(accepted)[2:] if p.kind is not p.POSITIONAL_ONLY}

    def rank(
        self, prompt: PromptText, completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        """What the function says of the completions.

        Raises: Paused naming the item if the function fails or exits; BadInput if what it returns is no
        list of numbers, one per completion.
        """
        passed = {k: v for k, v in columns.items() if self._takes_all or k in self._names}
        item = f"{columns.get('question_id', 'the question')} (prompt {str(prompt)[:60]!r})"
        try:
            returned = self.function(deepcopy(prompt), list(completions), **passed)
        except (Exception, SystemExit) as error:
            raise Paused(
                f"{self.description} failed on {item}: {type(error).__name__}: {error}; the answers "
                "so far are kept: mend it and run the same command again"
            ) from error
        return self._checked(returned, len(completions), item)

    def _checked(self, returned: Any, expected: int, item: str) -> list[float | None]:
        def wrong(what: str) -> BadInput:
            return BadInput(f"{self.description} on {item}: {what}")

        if hasattr(returned, "tolist"):  # arrays and tensors
            returned = returned.tolist()
        if not isinstance(returned, list | tuple):
            raise wrong(f"returned {type(returned).__name__}; expected a list of {expected} values")
        if len(returned) != expected:
            raise wrong(f"returned {len(returned)} values for {expected} completions")
        values: list[float | None] = []
        for place, value in enumerate(returned):
            number = value.item() if hasattr(value, "item") else value
            if number is not None and (not isinstance(number, Real) or not math.isfinite(number)):
                raise wrong(f"value {place} is {value!r}; expected a finite number or None")
            values.append(None if number is None else float(number))
        return values


def load_people(flag: str) -> FunctionPeople:
    """The function that "path/module.py:function" names, as people.

    Raises: BadInput for a missing file or function, a module that fails to import, or a function
    that cannot be called with a prompt and its completions.
    """
    function = load_function("people", flag)
    name = flag.rpartition(":")[2]
    try:
        parameters = inspect.signature(function).parameters
        inspect.signature(function).bind(
            "prompt", [], **{k: 0 for k in ("question_id",) if k in parameters}
        )
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"--people {flag}: {name} cannot be called as {name}{SIGNATURE}: {error}"
        ) from error
    return FunctionPeople(function, f"the function {flag}")
