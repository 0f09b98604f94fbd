"""The model that a policy started from: a copy of its own, or the policy itself with its adapters switched off.

Owns the switching. Knows nothing of what is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crestline.models.lora import is_adapted


class Reference:
    """model: frozen, or a policy that is trained by adapters alone, which costs no second model in memory."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @contextmanager
    def asked(self) -> Iterator[Any]:
        """The model to ask, in `eval`. Meanwhile a policy with adapters answers as the reference does.

        What is computed lazily from it must be computed before this ends.
        """
        was_training = self._model.training
        self._model.eval()
        try:
            if is_adapted(self._model):
                with self._model.disable_adapter():
                    yield self._model
            else:
                yield self._model
        finally:
            self._model.train(was_training)
