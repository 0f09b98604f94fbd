"""A critic: the reward that a policy may still expect at each token of its completion.

Owns a language model's trunk of its own and a linear head that begins at zero. Knows nothing of rewards and training.

Letters: N completions, T tokens, S chosen places (rows of a mask, in order), C hidden size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crestline.models.load import load_policy
from crestline.models.policy import hidden_before


class Critic(nn.Module):
    """model: a causal language model, whose output layer is not asked and not trained."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        layer = model.get_output_embeddings()
        if layer.weight is not model.get_input_embeddings().weight:
            layer.requires_grad_(False)
        self.head = nn.Linear(layer.in_features, 1, device=layer.weight.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def values_before(
        self, tokens_NT: Tensor, lengths_N: Tensor, chosen_NT: Tensor, *, group_size: int = 1
    ) -> Tensor:
        """Value [S], in reward units and float32, before each chosen token was written.

        Arguments as for `policy.token_logprobs`.
        """
        hidden_SC = hidden_before(
            self.model, tokens_NT, lengths_N, chosen_NT, group_size=group_size
        )
        with torch.autocast(hidden_SC.device.type, enabled=False):
            values: Tensor = self.head(hidden_SC.to(self.head.weight.dtype))
        return values[:, 0].float()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is trained, by name."""
        return {n: p.detach() for n, p in self.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up `tensors()` of a critic of the same model."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[name])


def new_critic(name_or_path: str | Path, *, device: str = "cpu") -> Critic:
    """A critic that begins from a language model's trunk and expects nothing. Raises BadInput as `load_policy`."""
    return Critic(load_policy(name_or_path, device=device).eval())
