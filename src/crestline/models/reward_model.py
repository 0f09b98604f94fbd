"""A reward model: a backbone with one output or M heads, and its own tokenizer, that scores text.

Owns scoring, how heads become one score, and what a folder of it holds. Knows nothing of training, rankings, policies
and of where models come from.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from crestline.formulas.ensemble import Aggregate, aggregated
from crestline.models.calibration import Calibration
from crestline.models.encoding import Encoder, Row
from crestline.models.heads import (
    divide_heads,
    head_tensors,
    last_linear,
    last_linear_name,
    mean_head,
)
from crestline.models.load import save_model
from crestline.models.lora import adapter_tensors, is_adapted, merged, write_adapter
from crestline.models.older import write_for_older
from crestline.models.packing import RankedTexts
from crestline.models.reload import Check, check_reloaded, spread_out
from crestline.models.reward_batches import packed_batches, padded_batches
from crestline.models.reward_forward import PLAIN, Forward, choose_forward
from crestline.types import PromptText

HEADS_FILE = "heads.safetensors"
"""All heads of a shared trunk; the folder's own head is their mean."""
ADAPTER_STORED = "crestline.json"
"""What config.json holds under `crestline`, in an adapter folder."""
BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
"""Tokens, padding included, that are scored together, by kind of device."""
PROBE = (
    ("The cat sat on the mat. ", ("So did the dog.", "Nobody knew why, and nobody asked.", "")),
    ("", ("Why did the hen cross the road? To get to the other side.",)),
)
"""Prompts with completions on which the ways through a backbone are compared, beside one as long as a text can be: the
same for every model, so that the choice is the same in every process."""
LONGEST_PROBE = 2048
"""Tokens of the longest text that the ways are compared on; what is longer goes the model's own way."""
ScoreDtype = Literal["float32", "bfloat16"]


class RewardModel:
    """A backbone with a scalar head, or M of them on one trunk, and its own tokenizer.

    model: the transformers model, with adapters or without; what training trains. aggregate, uwo_coefficient: how M
    heads become one score. head_means_M: raw score of a typical completion by each head, which puts them on one scale.
    A text's score does not depend on its neighbours in a batch, beyond the rounding of dtype.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_length: int,
        calibration: Calibration,
        aggregate: Aggregate = "mean",
        uwo_coefficient: float = 0.1,
        head_means_M: Sequence[float] | None = None,
        dtype: ScoreDtype = "float32",
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        inner = model.get_base_model() if is_adapted(model) else model
        self.max_length = min(max_length, context_length(inner) or max_length)
        self.calibration, self.dtype = calibration, dtype
        self.aggregate, self.uwo_coefficient = aggregate, uwo_coefficient
        self.num_heads = last_linear(model).out_features
        self.head_means_M = np.asarray(head_means_M or [0.0] * self.num_heads, dtype=np.float64)
        if positions_after_padding(inner) is None:
            for config in (inner.config, inner.config.get_text_config()):
                config.pad_token_id = tokenizer.pad_token_id
        set_sides(tokenizer, self.max_length)
        self._encoder = Encoder(tokenizer, self.max_length)
        parameters = inspect.signature(type(inner).forward).parameters
        self._forward: Forward | None = None  # chosen when something is scored
        self._options = {"use_cache": False} if "use_cache" in parameters else {}

    @property
    def num_members(self) -> int:
        """Members of the ensemble: its heads."""
        return self.num_heads

    def encode(self, prompt: PromptText, completion: str) -> list[int]:
        """Token ids of the scored text; what is too long loses its front."""
        return self.rows([prompt], [completion])[0].ids

    def rows(self, prompts: Sequence[PromptText], completions: Sequence[str]) -> list[Row]:
        """Each prompt with its completion as the model reads it. Special tokens that somebody typed are letters."""
        return self._encoder.rows(prompts, completions)

    def raw(self, tokens_NT: Tensor, attention_NT: Tensor) -> Tensor:
        """Raw scores [N, M] of token ids padded on the right. attention_NT: 1 at real tokens."""
        logits: Tensor = self.model(
            input_ids=tokens_NT, attention_mask=attention_NT, **self._options
        ).logits
        return logits

    def raw_of_rows(
        self, rows: Sequence[Row], *, batch_tokens: int | None = None
    ) -> NDArray[np.float64]:
        """Raw scores [N, M] of rows, in batches; the order is kept. What rows to one prompt share is read once, where
        the backbone allows it."""
        self.model.eval()
        device = next(self.model.parameters()).device
        scores_NM = np.zeros((len(rows), self.num_heads))
        budget = batch_tokens or BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])
        if self._forward is None:
            with torch.autocast(device.type, enabled=False):
                self._forward = choose_forward(self.model, self._probe())
        fast = self.dtype == "bfloat16"
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=fast):
            for places, found_NM in self._scored(rows, self._forward, budget, device):
                scores_NM[places] = found_NM.float().cpu().numpy()
        return scores_NM

    def _probe(self) -> RankedTexts:
        rankings = [self.rows([prompt] * len(texts), texts) for prompt, texts in PROBE]
        whole = rankings[-1][0].ids
        longest = (whole * LONGEST_PROBE)[: min(self.max_length, LONGEST_PROBE)]
        ids = [[np.array(row.ids) for row in rows] for rows in rankings]
        return RankedTexts.of([*ids, [np.array(longest)]])

    def _scored(
        self, rows: Sequence[Row], forward: Forward, budget: int, device: torch.device
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Places of rows with their raw scores, batch after batch."""
        most = 0 if forward is PLAIN else LONGEST_PROBE
        long = [n for n, row in enumerate(rows) if row.num_tokens > most]
        for places, found_NM in self._padded([rows[n] for n in long], budget, device):
            yield [long[n] for n in places], found_NM
        short = [n for n, row in enumerate(rows) if row.num_tokens <= most]
        batches = packed_batches([rows[n] for n in short], budget, shares=forward.shares)
        for places, texts in batches:
            yield [short[n] for n in places], forward.scores(self.model, texts)

    def _padded(
        self, rows: Sequence[Row], budget: int, device: torch.device
    ) -> Iterator[tuple[list[int], Tensor]]:
        """The same by the model's own forward pass, rows of about one length together."""
        lengths = [row.num_tokens for row in rows]
        for places in padded_batches(lengths, budget):
            tokens_NT = np.full((len(places), lengths[places[0]]), self.tokenizer.pad_token_id)
            seen_NT = np.zeros(tokens_NT.shape, dtype=np.int64)
            for place, n in enumerate(places):
                tokens_NT[place, : lengths[n]] = rows[n].ids
                seen_NT[place, : lengths[n]] = 1
            yield (
                places,
                self.raw(
                    torch.from_numpy(tokens_NT).to(device), torch.from_numpy(seen_NT).to(device)
                ),
            )

    def members_of_rows(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """`member_scores` of rows that `rows` made."""
        return self.raw_of_rows(rows) - self.head_means_M

    def aggregated(self, members_NM: NDArray[np.float64]) -> NDArray[np.float64]:
        """One raw score [N] of `member_scores`; the mean of heads is what any plain loader of the folder gives."""
        joined_N = aggregated(members_NM, self.aggregate, self.uwo_coefficient)
        return np.asarray(joined_N + self.head_means_M.mean())

    def member_scores(
        self, prompts: Sequence[PromptText], completions: Sequence[str]
    ) -> NDArray[np.float64]:
        """Scores [N, M] by each head, on one scale: 0 is a typical completion where heads were calibrated."""
        return self.members_of_rows(self.rows(prompts, completions))

    def score(self, prompts: Sequence[PromptText], completions: Sequence[str]) -> list[float]:
        """Raw score of each completion to its prompt, heads aggregated."""
        found: list[float] = self.aggregated(self.member_scores(prompts, completions)).tolist()
        return found

    def put_on_one_scale(self, means_M: Sequence[float], temperatures_M: Sequence[float]) -> None:
        """Give the heads one scale: divide each by its temperature, and remember its mean. Raw units before.

        means_M: raw score of a typical completion by each head. temperatures_M: what its differences are divided by.
        """
        temperatures = np.asarray(temperatures_M, dtype=np.float64)
        divide_heads(self.model, torch.from_numpy(temperatures))
        self.head_means_M = np.asarray(means_M, dtype=np.float64) / temperatures

    def write(self, folder: Path) -> None:
        """Write a folder that AutoModelForSequenceClassification loads, adapters merged, without looking back.

        M heads become their mean, which any loader can use, and heads.safetensors.
        """
        plain = merged(self.model) if is_adapted(self.model) else self.model
        plain.config.crestline = self._stored()
        if self.num_heads == 1:
            save_model(plain, self.tokenizer, folder)
            return
        heads, name = head_tensors(plain), last_linear_name(plain)
        tensors = {**plain.state_dict(), **under(f"{name}.", mean_head(heads))}
        plain.config.num_labels = 1
        plain.save_pretrained(folder, state_dict=tensors)
        plain.config.num_labels = self.num_heads
        self._write_beside(folder, heads)

    def write_adapter(self, folder: Path) -> None:
        """Write the adapters and the head as plain peft loads them, without looking back; M heads as in `write`."""
        tensors, heads = adapter_tensors(self.model), head_tensors(self.model)
        if self.num_heads > 1:
            name = last_linear_name(self.model.get_base_model())
            tensors |= under(f"base_model.model.{name}.", mean_head(heads))
        write_adapter(self.model, folder, tensors)
        layers = self.model.get_base_model().config.num_hidden_layers
        text = json.dumps({**self._stored(), "num_hidden_layers": layers}, indent=2) + "\n"
        (folder / ADAPTER_STORED).write_text(text, encoding="utf-8")
        self._write_beside(folder, heads)

    def _write_beside(self, folder: Path, heads: dict[str, Tensor]) -> None:
        if self.num_heads > 1:
            save_file(heads, folder / HEADS_FILE)
        self.tokenizer.save_pretrained(folder)
        write_for_older(folder)

    def save(
        self,
        folder: Path,
        prompts: Sequence[PromptText],
        completions: Sequence[str],
        *,
        adapter: Path | None = None,
    ) -> None:
        """Write the folder, and let a fresh process with plain transformers score some of these rows with it.

        adapter: also write the adapters there, and let plain peft score with them.
        Raises BadInput, one line, if the scores differ; what was written then is no reward model.
        """
        self.write(folder)
        checks = [self.check(folder, prompts, completions)]
        if adapter:
            self.write_adapter(adapter)
            checks.append(self.adapter_check(checks[0], adapter))
        check_reloaded(checks)

    def check(
        self, folder: Path, prompts: Sequence[PromptText], completions: Sequence[str]
    ) -> Check:
        """What a fresh process must find in a folder: scores of some of these rows, spread over their lengths."""
        texts = [self._encoder.pieces(p, c) for p, c in zip(prompts, completions, strict=True)]
        order = sorted(range(len(texts)), key=lambda n: sum(map(len, texts[n])))
        chosen = [order[place] for place in spread_out(len(order))]
        rows = self.rows([prompts[n] for n in chosen], [completions[n] for n in chosen])
        asked: list[dict[str, Any]] = []
        for n, row in zip(chosen, rows, strict=True):
            text, own = "".join(texts[n]), self._encoder.adds_its_own(prompts[n])
            is_plain = self.tokenizer(text, add_special_tokens=own)["input_ids"] == row.ids
            asked.append(
                {"text": text, "add_special_tokens": own} if is_plain else {"ids": row.ids}
            )
        return Check(folder=folder, rows=asked, scores=self.raw_of_rows(rows).mean(1).tolist())

    def adapter_check(self, check: Check, adapter: Path) -> Check:
        """The same rows and scores for the adapter folder, on top of its base model."""
        return replace(
            check,
            folder=adapter,
            base=self.model.peft_config["default"].base_model_name_or_path,
            num_hidden_layers=self.model.get_base_model().config.num_hidden_layers,
        )

    def _stored(self) -> dict[str, Any]:
        stored: dict[str, Any] = {
            "mean": self.calibration.mean,
            "temperature": self.calibration.temperature,
            "max_length": self.max_length,
        }
        if self.num_heads > 1:
            stored |= {"aggregate": self.aggregate, "uwo_coefficient": self.uwo_coefficient}
            stored["head_means"] = self.head_means_M.tolist()
        return stored


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with a prefix before their names."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def set_sides(tokenizer: Any, max_length: int) -> None:
    """Let a plain loader truncate and pad as we do: keep the end, pad on the right. Saved with the tokenizer."""
    sides = {"truncation_side": "left", "padding_side": "right", "model_max_length": max_length}
    for name, value in sides.items():
        setattr(tokenizer, name, value)
    tokenizer.init_kwargs.update(sides)


def context_length(model: Any) -> int | None:
    """Tokens that a model can read at once; None where nothing limits it."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if not limit or limit < 1:
        return None
    padding = positions_after_padding(model)
    return int(limit) - (0 if padding is None else padding + 1)


def positions_after_padding(model: Any) -> int | None:
    """The padding id from which RoBERTa and its kin count positions; their context is that much shorter."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.padding_idx
    return None
