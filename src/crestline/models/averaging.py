"""One reward model whose weights are the mean of several: WARM. Scoring costs as much as one of them.

Owns which models can be averaged. Knows nothing of files and rankings. It only makes sense for models that were trained
from the same pretrained weights; from different ones the mean is no model, and accuracy on held-out rankings shows it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from crestline.models.calibration import Calibration
from crestline.models.heads import head_tensors, mean_head, set_heads
from crestline.models.reward_model import RewardModel
from crestline.types import BadInput


@torch.no_grad()
def averaged(models: Iterable[tuple[str, RewardModel]]) -> RewardModel:
    """The mean of all weights; M heads count as their mean. The first model becomes it, the others pass one by one.

    models: what each is called in messages, and the model, without adapters. Its calibration is the mean of theirs: a
    start, to be fitted anew on rankings.
    Raises BadInput if architectures, shapes or tokenizers differ, or there are not at least two.
    Source: Ramé et al. (2024), arXiv 2401.12187, section 3.
    """
    first_name, first, total, calibrations = "", None, {}, []
    for name, member in models:
        single = one_head(member)
        weights = single.model.state_dict()
        calibrations.append(member.calibration)
        if first is None:
            first_name, first = name, single
            total = {key: tensor.double() for key, tensor in weights.items()}
            continue
        if difference := what_differs(first, single):
            raise BadInput(
                f"{first_name} and {name} cannot be averaged: {difference} differ; "
                "join them with --how ensemble"
            )
        for key, tensor in weights.items():
            total[key] += tensor.to(total[key])
    if first is None or len(calibrations) < 2:
        raise BadInput("an average needs at least two reward models")
    kinds = {key: tensor.dtype for key, tensor in first.model.state_dict().items()}
    means = {key: (tensor / len(calibrations)).to(kinds[key]) for key, tensor in total.items()}
    first.model.load_state_dict(means)
    first.calibration = Calibration(
        float(np.mean([calibration.mean for calibration in calibrations])),
        float(np.mean([calibration.temperature for calibration in calibrations])),
    )
    return first


def one_head(member: RewardModel) -> RewardModel:
    """The model itself, or a copy of one with M heads that has their mean as its only head."""
    if member.num_heads == 1:
        return member
    heads = mean_head(head_tensors(member.model))
    model = copy.deepcopy(member.model)
    set_heads(model, heads["weight"], heads.get("bias"))
    return RewardModel(
        model, member.tokenizer, max_length=member.max_length, calibration=member.calibration
    )


def what_differs(left: RewardModel, right: RewardModel) -> str:
    """What keeps two models from being averaged, in a word or two; empty where nothing does."""
    if type(left.model) is not type(right.model):
        return "architectures"
    if shapes(left.model) != shapes(right.model):
        return "sizes"
    if reading(left.tokenizer) != reading(right.tokenizer):
        return "tokenizers"
    return ""


def shapes(model: Any) -> dict[str, torch.Size]:
    """Shape of every weight."""
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def reading(tokenizer: Any) -> tuple[Any, ...]:
    """Everything that decides which ids a text becomes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {}
    rules.pop("truncation", None)
    rules.pop("padding", None)
    return rules, tokenizer.get_vocab(), tokenizer.chat_template, tokenizer.all_special_tokens
