"""Sampling by vLLM, in this process: for GPUs, where the extra `crestline[vllm]` is installed.

Owns what vLLM is given and what its answers mean. vLLM schedules, caches and draws by itself; each completion's seed is
handed on to it. Its log-probabilities are those after temperature, from which it drew.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from crestline.models.optional import require_vllm
from crestline.models.projection import projection_of, without_saving_wrapper
from crestline.models.sampler import check_room, context_of, encode_prompts, end_token_ids
from crestline.types import BadInput, Completion, NotFinite, PromptText

MEMORY_SHARE = 0.3
"""Share of the GPU's memory for vLLM's weights and cache; training needs the rest."""


class VllmSampler:
    """Samples from a policy through vLLM, whose weights are written anew at each refresh.

    model: the policy, loaded from a folder or hub name that vLLM can open too. dtype: of vLLM's weights; None takes the
    model's own, where vLLM by itself would take 16 bits for 32. Raises BadInput where vLLM is missing.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_completion_length: int,
        temperature: float = 1.0,
        memory_share: float = MEMORY_SHARE,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.vllm = vllm_module()
        self.model, self.tokenizer = model, tokenizer
        self.max_completion_length, self.temperature = max_completion_length, temperature
        self.end_ids = end_token_ids(model, tokenizer)
        self.context = context_of(model)
        self.engine = self.vllm.LLM(
            model=inside(model).config._name_or_path,
            dtype=str(dtype or next(model.parameters()).dtype).removeprefix("torch."),
            skip_tokenizer_init=True,
            gpu_memory_utilization=memory_share,
            logprobs_mode="processed_logprobs",
            enable_prefix_caching=True,
        )
        self.refresh()

    def refresh(self) -> None:
        """Give vLLM the model's current weights and forget what it computed with others."""
        model = self.model
        self.engine.apply_model(lambda served: served.load_weights(plain_weights(model)))
        self.engine.reset_prefix_cache()

    def encode(self, prompts: Sequence[PromptText]) -> list[list[int]]:
        """Token ids of each rendered prompt. Raises BadInput for one that leaves no room for a completion."""
        encoded = encode_prompts(self.tokenizer, prompts)
        check_room(prompts, encoded, self.max_completion_length, self.context)
        return encoded

    def sample(self, prompts: Sequence[PromptText], seeds: Sequence[int]) -> list[Completion]:
        """One completion for each prompt; seeds[i] is its seed.

        Raises BadInput as `encode`, and NotFinite where log-probabilities are not finite.
        """
        encoded = self.encode(prompts)
        if not encoded:
            return []
        wanted = [
            self.vllm.SamplingParams(
                temperature=self.temperature,
                max_tokens=self.max_completion_length,
                seed=seed % (1 << 63),
                logprobs=0,
                stop_token_ids=self.end_ids,
                ignore_eos=True,
                detokenize=False,
            )
            for seed in seeds
        ]
        given = [{"prompt_token_ids": ids} for ids in encoded]
        answers = self.engine.generate(given, wanted, use_tqdm=False)
        completions = [self._completion(answer.outputs[0]) for answer in answers]
        if not all(map(math.isfinite, chain.from_iterable(c.logprobs for c in completions))):
            raise NotFinite("the model gives log-probabilities that are not finite numbers")
        return completions

    def _completion(self, output: Any) -> Completion:
        tokens = list(output.token_ids)
        logprobs = [
            places[token].logprob for places, token in zip(output.logprobs, tokens, strict=True)
        ]
        ended = bool(tokens) and tokens[-1] in self.end_ids
        said = tokens[:-1] if ended else tokens
        return Completion(
            text=self.tokenizer.decode(said, skip_special_tokens=True),
            tokens=tuple(tokens),
            logprobs=tuple(logprobs),
            stop="end" if ended else "length",
        )


def vllm_module() -> Any:
    """vLLM, told to stay in this process, so that weights are handed over without copies between processes."""
    require_vllm()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    try:
        import vllm
    except ImportError as error:  # it is there, and built for another torch or CUDA
        raise BadInput(
            f"--sampler vllm: vLLM does not import: {error}; mend it, or use --sampler auto"
        ) from None
    return vllm


def inside(model: Any) -> Any:
    """The causal language model inside a PeftModel; any other as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def plain_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every parameter under the name that the model has without adapters, with LoRA added to the weights.

    A tensor that stands in two places comes once, as in a saved model. The model is not touched: merging and unmerging
    in place would leave rounding behind. Raises BadInput for adapters that are no plain LoRA.
    """
    wrapped: tuple[str, ...] = ()
    given: set[int] = set()
    for name, module in inside(model).named_modules():
        if name.startswith(wrapped):
            continue
        live = without_saving_wrapper(module)
        if hasattr(live, "lora_A"):
            parameters = merged_parameters(name, live)
        else:
            parameters = dict(live.named_parameters(recurse=live is not module))
        if live is not module or hasattr(live, "lora_A"):
            wrapped = (*wrapped, f"{name}.")
        for part, parameter in parameters.items():
            if id(parameter) in given:
                continue
            if isinstance(parameter, nn.Parameter):  # a merged weight lives for a moment only
                given.add(id(parameter))
            yield f"{name}.{part}".removeprefix("."), parameter.detach()


def merged_parameters(name: str, layer: Any) -> dict[str, Tensor]:
    """Weight and bias of a layer with adapters, laid out as without. Raises BadInput if they are no plain LoRA."""
    projection = projection_of(layer)
    if projection is None:
        raise BadInput(
            f"--sampler vllm: the adapter of {name} is no plain LoRA; use --sampler auto"
        )
    weight = projection.merged()
    found = {"weight": weight.t() if isinstance(layer.base_layer, Conv1D) else weight}
    return found if projection.bias is None else found | {"bias": projection.bias}
