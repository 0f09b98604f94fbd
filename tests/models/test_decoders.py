"""Our decoders against transformers' own forward pass, on prompts that are shared, long, and dropped on the way."""

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from crestline.models.decoding import OurEngine
from crestline.models.engine_choice import decoder_of, engine_of
from crestline.models.engines import Engine, TransformersEngine
from crestline.models.load import load_policy
from crestline.models.lora import quiet_peft
from crestline.types import BadInput

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
SCALED = {"rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = SCALED | {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = SCALED | {"rope_type": "yarn", "original_max_position_embeddings": 64}
WINDOWS = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
GPT2 = {"vocab_size": 97, "n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4}
GPT2 |= {"initializer_range": 0.2}
DECODED = {
    "llama": LlamaConfig(**SIZES),
    "llama, every head its own keys": LlamaConfig(**SIZES | {"num_key_value_heads": 4}),
    "llama, one key head": LlamaConfig(**SIZES | {"num_key_value_heads": 1}),
    "llama, wide heads": LlamaConfig(**SIZES, head_dim=16),
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama, biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama, large epsilon": LlamaConfig(**SIZES, rms_norm_eps=0.1),
    "llama 3 rotations": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "linear rotations": LlamaConfig(**SIZES, rope_parameters=SCALED | {"rope_type": "linear"}),
    "yarn rotations": LlamaConfig(**SIZES, rope_parameters=YARN),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "mistral, short window": MistralConfig(**SIZES, sliding_window=5),
    "mistral, window over blocks": MistralConfig(**SIZES, sliding_window=70),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2, window in one layer": Qwen2Config(**SIZES, **WINDOWS),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "smollm3, one layer unrotated": SmolLM3Config(
        **SIZES, no_rope_layer_interval=2, pad_token_id=0
    ),
    "gpt2": GPT2Config(**GPT2),
    "gpt2, exact gelu": GPT2Config(**GPT2, activation_function="gelu"),
    "gpt2, relu": GPT2Config(**GPT2, activation_function="relu"),
}
LEFT_TO_TRANSFORMERS = {
    "another activation": LlamaConfig(**SIZES, hidden_act="gelu"),
    "rotations by length": LlamaConfig(**SIZES, rope_parameters=SCALED | {"rope_type": "dynamic"}),
    "scores scaled by layer": GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True),
    "unscaled scores": GPT2Config(**GPT2, scale_attn_weights=False),
    "gpt2, another activation": GPT2Config(**GPT2, activation_function="silu"),
    "another family": PhiConfig(**SIZES),
}
LENGTHS = (1, 9, 65, 9, 64, 63, 130, 200)
COUNTS = (1, 3, 2, 1, 9, 1, 4, 1)
STEPS = 20


def built(config: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name or "norm" in name or ".ln_" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def texts(vocabulary: int, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def continued(prompts: list[list[int]], counts: Sequence[int], vocabulary: int) -> list[list[int]]:
    """Every row's prompt and its own next tokens."""
    after = texts(vocabulary, [STEPS] * sum(counts))
    copies = [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
    return [prompt + more for prompt, more in zip(copies, after, strict=True)]


@torch.inference_mode()
def decoded(engine: Engine, prompts: list[list[int]], rows: list[list[int]]) -> list[Tensor]:
    """Logits after each row's prompt and after each further token, [steps + 1, V]; some rows leave early."""
    session, _ = engine.open([len(p) for p in prompts], COUNTS, STEPS, len(rows))
    going = np.arange(len(rows))
    found: list[list[Tensor]] = [[] for _ in rows]
    states = session.append(prompts, COUNTS)[torch.from_numpy(np.repeat(np.arange(8), COUNTS))]
    for step in range(STEPS + 1):
        for number, logits in zip(going, session.logits(states), strict=True):
            found[number].append(logits)
        if step == STEPS:
            return [torch.stack(steps) for steps in found]
        if step in (5, 12):
            kept = np.flatnonzero(going % 3 != step % 3)[::-1].copy()
            session.keep(kept)
            going = going[kept]
        given = [rows[number][step - STEPS] for number in going]
        states = session.step(torch.tensor(given))
    raise AssertionError


@torch.no_grad()
def beside_transformers(model: Any, engine: Engine) -> Iterator[tuple[Tensor, Tensor]]:
    """Each row's logits of the engine and of a fresh forward pass."""
    prompts = texts(97)
    rows = continued(prompts, COUNTS, 97)
    found = decoded(engine, prompts, rows)
    assert float(torch.cat(found).std()) > 0.1
    assert {len(logits) for logits in found} == {6, 13, 21}
    for row, logits in zip(rows, found, strict=True):
        yield logits.float(), model(torch.tensor([row])).logits[0, -STEPS - 1 :][: len(logits)]


def check_against_transformers(model: Any, engine: Engine) -> None:
    for logits, expected in beside_transformers(model, engine):
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)


def check_near_transformers(model: Any, engine: Engine) -> None:
    for logits, expected in beside_transformers(model, engine):
        assert float((logits - expected).std()) < 0.03 * float(expected.std())


@pytest.mark.parametrize("config", DECODED.values(), ids=DECODED.keys())
def test_equals_transformers(config: Any) -> None:
    model = built(config)
    engine = engine_of(model, "ours", dtype=torch.float32)
    check_against_transformers(model, engine)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_the_transformers_engine_equals_transformers(name: str) -> None:
    model = built(DECODED[name])
    check_against_transformers(model, TransformersEngine(model))


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_bfloat16_stays_near(name: str) -> None:
    model = built(DECODED[name])
    check_near_transformers(model, engine_of(model, "ours", dtype=torch.bfloat16))


@pytest.mark.parametrize("name", ["stories260K", "tinystories-656k", "babyllama-tok361"])
def test_equals_transformers_on_a_trained_model(real_model: Any, name: str) -> None:
    model = load_policy(real_model(name)).eval()
    lengths = [min(n, model.config.max_position_embeddings - STEPS) for n in LENGTHS]
    prompts = texts(model.config.vocab_size, lengths)
    rows = continued(prompts, COUNTS, model.config.vocab_size)
    for row, logits in zip(
        rows, decoded(engine_of(model, "ours", dtype=torch.float32), prompts, rows), strict=True
    ):
        expected = model(torch.tensor([row])).logits[0, -STEPS - 1 :][: len(logits)]
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


def with_lora(config: Any, **settings: Any) -> Any:
    by_columns = config is DECODED["gpt2"]
    settings = {"target_modules": "all-linear", "fan_in_fan_out": by_columns} | settings
    lora = LoraConfig(r=4, **settings)
    with quiet_peft():
        model: Any = get_peft_model(built(config), lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    return model.eval()


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_adapters_are_merged(name: str) -> None:
    model = with_lora(DECODED[name])
    engine = engine_of(model, "ours", dtype=torch.float32)
    check_against_transformers(model, engine)
    with model.disable_adapter():
        engine.refresh(model)
        check_against_transformers(model, engine)
    engine.refresh(model)
    check_against_transformers(model, engine)


def test_a_layer_saved_whole_beside_adapters_is_read() -> None:
    model = with_lora(DECODED["llama"], modules_to_save=["lm_head"], exclude_modules=["lm_head"])
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight.mul_(1.5)
    check_against_transformers(model, engine_of(model, "ours", dtype=torch.float32))


@pytest.mark.parametrize("config", LEFT_TO_TRANSFORMERS.values(), ids=LEFT_TO_TRANSFORMERS.keys())
def test_what_we_do_not_compute_is_left_to_transformers(config: Any) -> None:
    model = built(config)
    assert isinstance(engine_of(model), TransformersEngine)
    with pytest.raises(BadInput, match="--sampler ours does not decode this"):
        engine_of(model, "ours", dtype=torch.float32)


def test_adapters_of_other_kinds_are_left_to_transformers() -> None:
    assert decoder_of(with_lora(DECODED["llama"], use_dora=True)) is None
    biased = with_lora(DECODED["qwen2"], lora_bias=True, target_modules=["q_proj"])
    assert decoder_of(biased) is None


def test_a_quantised_model_is_left_to_transformers(real_model: Any) -> None:
    assert decoder_of(load_policy(real_model("bitllama-3m"))) is None


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(BadInput, match="--sampler fast: choose auto, ours, transformers or vllm"):
        engine_of(built(DECODED["llama"]), "fast")


def weights_of(engine: Engine) -> list[torch.Tensor]:
    assert isinstance(engine, OurEngine)
    decoder: Any = engine.decoder
    found = [decoder.output]
    for layer in decoder.layers:
        found += [*layer.query_key_value, *layer.gate_up, layer.attention_output, layer.down]
    return [part.weight for part in found]


def test_full_precision_weights_are_not_copied() -> None:
    model = built(DECODED["llama"])
    live = {parameter.data_ptr() for parameter in model.parameters()}
    engine = engine_of(model, "ours", dtype=torch.float32)
    assert {weight.data_ptr() for weight in weights_of(engine)} <= live


def test_low_precision_weights_are_one_copy_made_anew() -> None:
    model = built(DECODED["llama"])
    engine = engine_of(model, "ours", dtype=torch.bfloat16)
    before = [weakref.ref(weight) for weight in weights_of(engine)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.1)
    engine.refresh(model)
    assert not any(old() is not None for old in before)
    assert all(weight.dtype == torch.bfloat16 for weight in weights_of(engine))
    check_near_transformers(model, engine)
