"""Reward models: any Hugging Face backbone with one output, calibrated to [0, 1], scored on text.

Owns loading, scoring, calibration and a save that is read back. Knows nothing of training or policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from crestline.models.load import _load, load_tokenizer, save_model
from crestline.models.text import render_scored
from crestline.types import BadInput, PromptText


@dataclass(frozen=True)
class Calibration:
    """score = sigmoid((raw - mean) / temperature): the probability that a person prefers this to a typical answer
    of the reference. mean and temperature in raw units.

    >>> Calibration(mean=1.0, temperature=2.0).score(1.0)
    0.5
    """

    mean: float = 0.0
    temperature: float = 1.0

    def score(self, raw: float) -> float:
        """A raw score as a number in [0, 1]."""
        return float(1 / (1 + np.exp(-np.clip((raw - self.mean) / self.temperature, -60, 60))))


def fit_temperature(differences_P: Sequence[float]) -> float:
    """The temperature T that makes sigmoid(difference / T) most likely, in raw units.

    differences_P: raw score of the preferred completion minus that of the other. Found on log T in [-5, 5].
    """
    differences = np.asarray(differences_P, dtype=np.float64)
    if len(differences) == 0:
        raise ValueError("no pairs to fit the temperature on")

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -differences / np.exp(log_temperature)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x))


class RewardModel:
    """A backbone with a scalar head and its own tokenizer."""

    def __init__(
        self, model: Any, tokenizer: Any, *, max_length: int, calibration: Calibration
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        limit = getattr(model.config, "max_position_embeddings", None) or max_length
        self.max_length = min(max_length, int(limit))
        self.calibration = calibration
        self.model.config.pad_token_id = tokenizer.pad_token_id

    def encode(self, prompt: PromptText, completion: str) -> list[int]:
        """Token ids of the scored text; what is too long loses its front."""
        ids = self._whole(prompt, completion)
        if len(ids) > self.max_length:
            ids = ids[:1] + ids[len(ids) - self.max_length + 1 :]
        return ids

    def loses_its_front(self, prompt: PromptText, completion: str) -> bool:
        """Whether the scored text is longer than max_length."""
        return len(self._whole(prompt, completion)) > self.max_length

    def _whole(self, prompt: PromptText, completion: str) -> list[int]:
        text = render_scored(self.tokenizer, prompt, completion)
        own = self.tokenizer.chat_template is None or isinstance(prompt, str)
        ids: list[int] = self.tokenizer(text, add_special_tokens=own)["input_ids"]
        return ids or [self.tokenizer.eos_token_id or self.tokenizer.pad_token_id]

    def raw(self, tokens_NT: Tensor, attention_NT: Tensor) -> Tensor:
        """Raw scores [N] of padded token ids."""
        logits: Tensor = self.model(input_ids=tokens_NT, attention_mask=attention_NT).logits[:, 0]
        return logits

    @torch.no_grad()
    def score(
        self, prompts: Sequence[PromptText], completions: Sequence[str], *, batch_size: int = 256
    ) -> list[float]:
        """Raw score of each completion to its prompt. Batches are sorted by length; the order is kept."""
        self.model.eval()
        device = next(self.model.parameters()).device
        rows = [self.encode(p, c) for p, c in zip(prompts, completions, strict=True)]
        order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = max(len(rows[n]) for n in chosen)
            tokens = torch.full((len(chosen), width), self.tokenizer.pad_token_id)
            seen = torch.zeros(len(chosen), width, dtype=torch.long)
            for place, n in enumerate(chosen):
                tokens[place, : len(rows[n])] = torch.tensor(rows[n])
                seen[place, : len(rows[n])] = 1
            found = self.raw(tokens.to(device), seen.to(device)).float().tolist()
            for n, value in zip(chosen, found, strict=True):
                scores[n] = value
        return scores

    def save(self, folder: Path) -> None:
        """Write a folder that AutoModelForSequenceClassification loads, and check that it scores the same.

        Raises BadInput if the folder read back gives other scores.
        """
        self.model.config.crestline = {
            "mean": self.calibration.mean,
            "temperature": self.calibration.temperature,
            "max_length": self.max_length,
        }
        save_model(self.model, self.tokenizer, folder)
        probe = ["", "a", "The quick brown fox jumps over the lazy dog."]
        again = load_reward_model(folder)
        if not np.allclose(again.score(probe, probe), self.score(probe, probe), atol=1e-4):
            raise BadInput(
                f"{folder}: the saved reward model scores differently when read back; nothing was kept"
            )


def load_reward_model(name_or_path: str | Path, *, device: str = "cpu") -> RewardModel:
    """A trained reward model with its calibration. Raises BadInput if its head is missing or has two labels."""
    model = _load(AutoModelForSequenceClassification, name_or_path, device, "a reward model")
    if model.crestline_missing_keys:
        raise BadInput(
            f"{name_or_path} has no trained reward head (missing {model.crestline_missing_keys[0]}); "
            "train one with: crestline reward"
        )
    if model.config.num_labels != 1:
        raise BadInput(
            f"{name_or_path} has {model.config.num_labels} labels; a reward model has one"
        )
    stored = getattr(model.config, "crestline", None) or {}
    return RewardModel(
        model.eval(),
        load_tokenizer(name_or_path),
        max_length=int(stored.get("max_length", 1024)),
        calibration=Calibration(stored.get("mean", 0.0), stored.get("temperature", 1.0)),
    )


def new_reward_model(
    backbone: str | Path,
    *,
    seed: int,
    max_length: int,
    half_depth: bool = False,
    device: str = "cpu",
) -> RewardModel:
    """A backbone with a new scalar head. half_depth: keep only the first half of its blocks."""
    torch.manual_seed(seed)
    arguments = {}
    if half_depth:
        config = AutoConfig.from_pretrained(str(backbone), trust_remote_code=False)
        arguments["num_hidden_layers"] = max(1, config.num_hidden_layers // 2)
    model = _load(
        AutoModelForSequenceClassification,
        backbone,
        device,
        "a backbone",
        num_labels=1,
        **arguments,
    )
    return RewardModel(
        model, load_tokenizer(backbone), max_length=max_length, calibration=Calibration()
    )
