"""Owns a model and its optimiser: the only code that steps weights.

Knows nothing of stages: a batch and a loss come in, metrics come out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from crestline.training.arithmetic import arithmetic
from crestline.training.batches import Batch, Mean
from crestline.training.configs import Optimization
from crestline.training.health import Unhealthy

Loss = Callable[[Any, Any], tuple[Tensor, dict[str, Mean]]]
"""(model, part of a batch) -> (sum already divided by the update's denominators, metrics)."""


def learning_rate(config: Optimization, update: int, num_updates: int) -> float:
    """Learning rate of an update, counted from 1: linear warm-up, then the schedule, towards 0 at the end.

    >>> learning_rate(Optimization(learning_rate=1.0, warmup_ratio=0.0, lr_scheduler_type="linear"), 1, 10)
    1.0
    """
    warmup = round(config.warmup_ratio * num_updates)
    if update <= warmup:
        return config.learning_rate * update / warmup
    done = (update - 1 - warmup) / max(1, num_updates - warmup)
    if config.lr_scheduler_type == "linear":
        return config.learning_rate * (1 - done)
    if config.lr_scheduler_type == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate


class Learner:
    """A model with AdamW; `update` makes one step from one batch, in micro-batches.

    dropout: False trains without the model's dropout, as RL must: what is trained is what sampled.
    critic: a second module that the loss trains as well, with critic_scale times the learning rate; its gradients are
    clipped on their own. None: there is none.
    """

    def __init__(
        self,
        model: Any,
        config: Optimization,
        num_updates: int,
        *,
        dropout: bool = True,
        critic: Any = None,
        critic_scale: float = 1.0,
    ) -> None:
        self.dropout = dropout
        self.model, self.config, self.num_updates = model, config, num_updates
        self.device_type = next(model.parameters()).device.type
        if config.gradient_checkpointing:
            for module in (model, critic.model) if critic is not None else (model,):
                recompute_activations(module, dropout=dropout)
        self.critic = critic
        self.named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        groups = [{"params": [parameter for _, parameter in self.named], "scale": 1.0}]
        if critic is not None:
            added = [(f"critic.{n}", p) for n, p in critic.named_parameters() if p.requires_grad]
            self.named += added
            groups.append({"params": [p for _, p in added], "scale": critic_scale})
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
            fused=True,
        )

    def update(self, batch: Batch, loss: Loss, update: int) -> dict[str, float]:
        """One optimiser step. Raises Unhealthy, with the weights untouched, if loss or gradient is not finite."""
        self.model.train(self.dropout or self.config.gradient_checkpointing)
        if self.critic is not None:
            self.critic.train(self.config.gradient_checkpointing)
        sums: dict[str, Mean] = {}
        total = 0.0
        for part in batch.parts(self.config.micro_batch_size):
            with arithmetic(self.config, self.device_type):
                value, metrics = loss(self.model, part)
            value.backward()  # type: ignore[no-untyped-call]
            total += float(value.detach())
            for name, mean in metrics.items():
                sums[name] = sums[name] + mean if name in sums else mean
        norm, *critic_norm = (
            float(torch.nn.utils.clip_grad_norm_(group["params"], self.config.max_grad_norm))
            for group in self.optimizer.param_groups
        )
        if not all(map(math.isfinite, (total, norm, *critic_norm))):
            self.optimizer.zero_grad(set_to_none=True)
            raise Unhealthy(
                update,
                f"loss {total} with gradient norm {norm} is not finite",
                "lower --learning_rate",
            )
        rate = learning_rate(self.config, update, self.num_updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        means = {name: mean.value for name, mean in sums.items()}
        if critic_norm:
            means["critic_grad_norm"] = critic_norm[0]
        return {"loss": total, **means, "grad_norm": norm, "learning_rate": rate}

    def state(self) -> dict[str, Tensor]:
        """The optimiser's tensors by parameter name; the weights travel as the model's own folder."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.named:
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up `state()` of a learner of the same model. What no gradient has reached yet has no state."""
        for name, parameter in self.named:
            if f"step.{name}" in tensors:
                self.optimizer.state[parameter] = {
                    key: tensors[f"{key}.{name}"].to(parameter.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }


def recompute_activations(model: Any, *, dropout: bool) -> None:
    """Switch activation checkpointing on. It works in training mode alone, so without dropout the rates become 0."""
    switch = getattr(model, "activation_checkpointing_enable", None)  # its name in newer versions
    (switch or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if not dropout:
        no_dropout(model.modules())


def only_adapters_drop_out(model: Any) -> None:
    """Switch the backbone's own dropout off; that of the adapters stays."""
    no_dropout(module for name, module in model.named_modules() if ".lora_dropout." not in name)


def no_dropout(modules: Iterable[torch.nn.Module]) -> None:
    """Leave nothing to chance in the modules: layers of dropout, and rates that a module keeps as its own numbers."""
    for module in modules:
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            # dropout, layerdrop, attn_pdrop, drop_prob: every family has names of its own
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
