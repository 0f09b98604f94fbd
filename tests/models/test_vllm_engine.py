"""What vLLM is given and what is made of its answers, with a stand-in for the package, which needs a GPU.

The stand-in accepts exactly the arguments that vLLM 0.33 has, serves nothing but the weights it was handed, and draws
by transformers' forward pass.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from crestline.models.load import load_policy, save_model
from crestline.models.lora import quiet_peft
from crestline.models.sampling import open_sampler
from crestline.models.vllm_engine import VllmSampler, plain_weights
from crestline.rewards.configs import RewardSources, Shaping
from crestline.runs.tables import read_table
from crestline.training.configs import Lora, Optimization
from crestline.training.rl import rl
from crestline.training.rl_configs import Checkpointing, RlConfig
from crestline.training.seeds import stream
from crestline.types import BadInput

PROMPTS = ["The cat", "a", "sat on the mat"] * 4


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    temperature: float
    max_tokens: int
    seed: int
    logprobs: int
    stop_token_ids: list[int]
    ignore_eos: bool
    detokenize: bool


class Served(torch.nn.Module):
    """A model of vLLM's: its weights come from `load_weights` alone, under the names of a saved model."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
        for parameter in self.model.parameters():
            torch.nn.init.constant_(parameter, torch.nan)

    def load_weights(self, weights: Any) -> set[str]:
        mine = dict(self.model.named_parameters())
        loaded = set()
        for name, tensor in weights:
            assert mine[name].shape == tensor.shape, name
            mine[name].data.copy_(tensor)
            loaded.add(name)
        assert loaded == set(mine)
        return loaded


class LLM:
    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        skip_tokenizer_init: bool,
        gpu_memory_utilization: float,
        logprobs_mode: str,
        enable_prefix_caching: bool,
    ) -> None:
        assert logprobs_mode == "processed_logprobs" and 0 < gpu_memory_utilization < 1
        assert dtype in ("float32", "bfloat16")  # "auto" would take 16 bits for 32
        self.served, self.cached = Served(model), True

    def apply_model(self, func: Callable[[torch.nn.Module], Any]) -> list[Any]:
        return [func(self.served)]

    def reset_prefix_cache(self) -> bool:
        self.cached = False
        return True

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        sampling_params: Sequence[SamplingParams],
        *,
        use_tqdm: bool,
    ) -> list[Any]:
        assert not self.cached
        return [
            self._one(p["prompt_token_ids"], w)
            for p, w in zip(prompts, sampling_params, strict=True)
        ]

    def _one(self, ids: list[int], wanted: SamplingParams) -> Any:
        generator = torch.Generator().manual_seed(wanted.seed)
        said: list[int] = []
        logprobs = []
        while len(said) < wanted.max_tokens and not set(said) & set(wanted.stop_token_ids):
            logits = self.served.model(torch.tensor([ids + said])).logits[0, -1]
            logp = (logits / wanted.temperature).log_softmax(0)
            said.append(int(torch.multinomial(logp.exp(), 1, generator=generator)))
            logprobs.append({said[-1]: SimpleNamespace(logprob=float(logp[said[-1]]))})
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(said), logprobs=logprobs)])


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)


@pytest.fixture(params=["llama", "tied llama", "gpt2"])
def saved(request: pytest.FixtureRequest, tiny_llama, gpt2, tokenizer, tmp_path) -> Any:
    models = {
        "llama": tiny_llama,
        "tied llama": lambda: tiny_llama(tie_word_embeddings=True),
        "gpt2": lambda: gpt2,
    }
    save_model(models[request.param](), tokenizer, tmp_path)
    return AutoModelForCausalLM.from_pretrained(tmp_path).eval()


def check(model: Any, sampler: Any, tokenizer: Any) -> None:
    """Log-probabilities, stops and texts against a fresh forward pass of the policy."""
    seeds = [2**63 + n for n in range(len(PROMPTS))]
    completions = sampler.sample(PROMPTS, seeds)
    assert completions == sampler.sample(PROMPTS, seeds)
    stops = [completion.stop for completion in completions]
    assert "end" in stops and "length" in stops
    for ids, completion in zip(sampler.encode(PROMPTS), completions, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *completion.tokens]])).logits[0, len(ids) - 1 : -1]
        logprobs = (logits / 0.8).log_softmax(1)
        expected = logprobs.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
        ended = completion.stop == "end"
        assert ended == (completion.tokens[-1] in sampler.end_ids)
        said = completion.tokens[:-1] if ended else completion.tokens
        assert completion.text == tokenizer.decode(said, skip_special_tokens=True)


def opened(model: Any, tokenizer: Any) -> Any:
    model.generation_config.eos_token_id = list(range(0, 290, 12))
    sampler = open_sampler(
        model, tokenizer, sampler="vllm", max_completion_length=8, temperature=0.8
    )
    assert isinstance(sampler, VllmSampler)
    return sampler


@pytest.mark.usefixtures("vllm")
def test_a_policy_is_served_and_refreshed(saved, tokenizer) -> None:
    sampler = opened(saved, tokenizer)
    check(saved, sampler, tokenizer)
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.mul_(1.1)
    sampler.engine.cached = True
    sampler.refresh()
    check(saved, sampler, tokenizer)
    assert sampler.sample([], []) == []
    with pytest.raises(BadInput, match="prompt too long"):
        sampler.sample(["a" * 80], [0])


@pytest.mark.usefixtures("vllm")
def test_adapters_arrive_merged_and_stay_apart(saved, tokenizer) -> None:
    by_columns = saved.config.model_type == "gpt2"
    lora = LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=by_columns)
    with quiet_peft():
        model: Any = get_peft_model(saved, lora).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    check(model, opened(model, tokenizer), tokenizer)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_layers_saved_whole_come_under_their_own_name(tiny_llama) -> None:
    model = tiny_llama()
    names = {name for name, _ in model.named_parameters()}
    with quiet_peft():
        adapted = get_peft_model(
            model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
        )
    found = dict(plain_weights(adapted))
    assert set(found) == names
    live = adapted.get_base_model().lm_head.modules_to_save["default"].weight
    assert found["lm_head.weight"].data_ptr() == live.data_ptr()


def test_adapters_that_are_no_plain_lora_are_refused(tiny_llama) -> None:
    with quiet_peft():
        model = get_peft_model(
            tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
        )
    with pytest.raises(
        BadInput, match=r"the adapter of model.layers.0.self_attn.q_proj is no plain LoRA"
    ):
        list(plain_weights(model))


def test_without_vllm_the_message_says_what_to_install(llama, tokenizer, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(BadInput, match=r"pip install 'crestline\[vllm\]', or --sampler auto"):
        open_sampler(llama, tokenizer, sampler="vllm", max_completion_length=8)


@pytest.mark.parametrize("sampler", ["auto", "ours", "transformers"])
def test_the_others_are_opened_by_name(llama, tokenizer, sampler) -> None:
    built = open_sampler(
        llama, tokenizer, sampler=sampler, max_completion_length=8, temperature=0.8
    )
    assert (built.temperature, built.max_completion_length) == (0.8, 8)
    assert len(built.sample(PROMPTS, range(12))) == 12


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize("use_peft", [False, True])
def test_rl_samples_by_vllm_and_its_reference_without(llama, tokenizer, tmp_path, use_peft) -> None:
    """The flag's way through RL: new weights arrive after each update, and shaping's reference has its own sampler."""
    save_model(llama, tokenizer, tmp_path / "policy")
    rows = [json.dumps({"prompt": f"The cat number {n}"}) for n in range(10)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    (tmp_path / "rewards.py").write_text(
        "def length(prompts, completions):\n    return [float(len(c)) for c in completions]\n"
    )
    config = RlConfig(
        model_name_or_path=str(tmp_path / "policy"),
        dataset_name=str(tmp_path / "prompts.jsonl"),
        output_dir=str(tmp_path / "run"),
        reward_sources=RewardSources(reward_funcs=f"{tmp_path}/rewards.py:length"),
        shaping=Shaping(reward_shaping="par", num_reference_completions=2),
        sampler="vllm",
        lora=Lora(use_peft=use_peft, lora_r=2),
        num_updates=2,
        num_prompts=2,
        num_generations=2,
        max_completion_length=5,
        checkpoints=Checkpointing(num_eval_prompts=2),
        optimization=Optimization(learning_rate=1e-2, dtype="float32", warmup_ratio=0.0),
    )
    run = rl(config)
    trained = load_policy(run / "model").eval()
    written = read_table(run / "evaluations" / "evaluation_00002.parquet")
    seeds = [stream(0, "evaluate", n) for n in range(2)]
    sampler = VllmSampler(trained, tokenizer, max_completion_length=5)
    expected = sampler.sample(written["prompt"], seeds)
    assert written["completion"] == [completion.text for completion in expected]


def test_a_vllm_that_does_not_import_is_one_line(llama, tokenizer, tmp_path, monkeypatch) -> None:
    (tmp_path / "vllm.py").write_text("raise ImportError('libcudart.so.13: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BadInput, match=r"vLLM does not import: libcudart\.so\.13"):
        open_sampler(llama, tokenizer, sampler="vllm", max_completion_length=8)
