from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from crestline.models import decoding
from crestline.models import sampler as sampler_module
from crestline.models.load import load_policy, load_tokenizer
from crestline.models.sampler import (
    DRAWN_ON,
    STEPS_UNSEEN,
    PolicySampler,
    encode_prompts,
    end_token_ids,
)
from crestline.types import BadInput, Completion, NotFinite, PromptText

PROMPTS: list[PromptText] = [
    "The cat",
    [{"role": "user", "content": "Why did the hen cross the road?"}],
    "a",
    "sat on the mat and the dog",
] * 12
SEEDS = list(range(1000, 1000 + len(PROMPTS)))
Samplers = Callable[..., PolicySampler]


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def sampler(tokenizer) -> Samplers:
    def build(model: Any, **changes: Any) -> PolicySampler:
        settings = {"max_completion_length": 10, "temperature": 1.0, "dtype": torch.float32}
        return PolicySampler(model, tokenizer, **(settings | changes))

    return build


@pytest.fixture
def often_ending(sampler) -> Samplers:
    """A sampler for which a quarter of the vocabulary ends the completion."""

    def build(model: Any, **changes: Any) -> PolicySampler:
        built = sampler(model, **changes)
        built.end_ids = list(range(0, 290, 4))
        return built

    return build


def close(first: Sequence[Completion], second: Sequence[Completion]) -> None:
    for one, other in zip(first, second, strict=True):
        assert (one.tokens, one.text, one.stop) == (other.tokens, other.text, other.stop)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def test_our_engine_and_transformers_say_the_same(model, often_ending) -> None:
    ours, theirs = often_ending(model, engine="ours"), often_ending(model, engine="transformers")
    for batch_size in (256, 10):
        ours.batch_size = theirs.batch_size = batch_size
        close(ours.sample(PROMPTS, SEEDS), theirs.sample(PROMPTS, SEEDS))


def test_trained_model_through_both_engines(real_model) -> None:
    folder = real_model("stories260K")
    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    fast = PolicySampler(model, tokenizer, max_completion_length=30, dtype=torch.float32)
    slow = PolicySampler(model, tokenizer, max_completion_length=30, engine="transformers")
    prompts = ["Once upon a time", "Lily", ""] * 4
    first, second = fast.sample(prompts, range(12)), slow.sample(prompts, range(12))
    assert sum(a.tokens == b.tokens for a, b in zip(first, second, strict=True)) >= 11
    mean = np.mean([logprob for completion in first for logprob in completion.logprobs])
    assert mean > -2.5  # a wrong cache or position makes it babble


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_recorded_logprobs_equal_a_fresh_forward_pass(model, often_ending, temperature) -> None:
    built = often_ending(model, temperature=temperature)
    completions = built.sample(PROMPTS, SEEDS)
    for prompt, completion in zip(built.encode(PROMPTS), completions, strict=True):
        ids = torch.tensor([[*prompt, *completion.tokens]])
        logits = model(ids).logits[0, len(prompt) - 1 : -1] / temperature
        expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """p-value; bins are joined, least likely first, until 10 are expected in each."""
    expected = expected * counts.sum() / expected.sum()
    order = np.argsort(expected)
    bins = np.minimum(np.cumsum(expected[order]) // 10, expected.sum() // 10 - 1).astype(int)
    seen, wanted = np.bincount(bins, counts[order]), np.bincount(bins, expected[order])
    filled = wanted > 0
    return float(stats.chisquare(seen[filled], wanted[filled]).pvalue)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@torch.no_grad()
def test_samples_follow_the_next_token_distribution(model, sampler, temperature) -> None:
    number, end = 3000, model.config.eos_token_id
    built = sampler(model, max_completion_length=2, temperature=temperature, batch_size=3000)
    [prompt] = built.encode(["The cat"])
    first = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1).double()
    rows = torch.cat([torch.tensor(prompt).repeat(290, 1), torch.arange(290)[:, None]], 1)
    after = (model(rows).logits[:, -1] / temperature).softmax(-1).double()
    going_on = first.clone()
    going_on[end] = 0
    completions = built.sample(["The cat"] * number, range(number))
    counts = np.bincount([c.tokens[0] for c in completions], minlength=290)
    assert chi_square(counts, first.numpy()) > 1e-3
    second = np.bincount([c.tokens[1] for c in completions if len(c.tokens) > 1], minlength=290)
    assert chi_square(second, (going_on @ after).numpy()) > 1e-3


GROUPS: list[PromptText] = [
    prompt
    for prompt, count in (
        ("The cat", 8),
        ("a" * 70, 4),
        ("the cat and " * 9, 4),
        ("The cat", 3),
        ("a", 1),
        ("the dog " * 30, 9),
        ("mat", 5),
        ("the dog " * 16, 1),
    )
    for _ in range(count)
]


def exactly(completions: Sequence[Completion]) -> list[Any]:
    return [(c.tokens, c.logprobs, c.text, c.stop) for c in completions]


@pytest.fixture(params=["llama", "six queries a key", "gpt2"])
def long_model(request: pytest.FixtureRequest, tiny_llama, tokenizer) -> Any:
    if request.param == "llama":
        return tiny_llama(max_position_embeddings=256)
    if request.param == "six queries a key":
        heads = {"num_attention_heads": 6, "num_key_value_heads": 1, "hidden_size": 48}
        return tiny_llama(max_position_embeddings=256, **heads)
    torch.manual_seed(0)
    sizes = {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = GPT2Config(vocab_size=len(tokenizer), initializer_range=0.15, eos_token_id=4, **sizes)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_completion_is_the_same_to_the_last_bit_in_any_company(
    long_model, often_ending, dtype
) -> None:
    settings = {"max_completion_length": 40, "dtype": dtype, "engine": "ours"}
    seeds = list(range(len(GROUPS)))
    built = often_ending(long_model, **settings)
    built.end_ids = list(range(0, 290, 29))
    together = exactly(built.sample(GROUPS, seeds))
    assert len({len(tokens) for tokens, *_ in together}) >= 8  # rows leave at many times
    for batch_size in (1, 2, 7, 16, 24):  # rows refill others' places, groups are cut
        built.batch_size = batch_size
        assert exactly(built.sample(GROUPS, seeds)) == together, batch_size
    built.batch_size = 256
    backwards = exactly(built.sample(GROUPS[::-1], seeds[::-1]))
    assert backwards[::-1] == together
    mixed = np.random.default_rng(0).permutation(len(GROUPS))
    scattered = exactly(built.sample([GROUPS[n] for n in mixed], mixed.tolist()))
    assert [scattered[n] for n in np.argsort(mixed)] == together
    alone = [exactly(built.sample([GROUPS[n]], [n]))[0] for n in range(0, len(GROUPS), 5)]
    assert alone == together[::5]


def test_threads_change_nothing(often_ending, tokenizer) -> None:
    """A model wide enough that threads share its products."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 1056, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=4096, initializer_range=0.06, **sizes, **heads)
    built = often_ending(LlamaForCausalLM(config).eval(), max_completion_length=20)
    built.end_ids = list(range(0, 4096, 41))
    said = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            said.append(exactly(built.sample(GROUPS, range(len(GROUPS)))))
    finally:
        torch.set_num_threads(1)
    assert said[1] == said[0] and said[2] == said[0]


@pytest.mark.parametrize("batch_size", [5, 1])
def test_transformers_engine_in_any_company(model, often_ending, batch_size) -> None:
    built = often_ending(model, engine="transformers")
    together = built.sample(PROMPTS, SEEDS)
    built.batch_size = batch_size
    close(together, built.sample(PROMPTS, SEEDS))


def test_ends_are_found_late_where_looking_costs(model, often_ending, monkeypatch) -> None:
    expected = exactly(often_ending(model).sample(PROMPTS, SEEDS))
    monkeypatch.setitem(STEPS_UNSEEN, "cpu", 4)
    built = often_ending(model, batch_size=9)
    assert exactly(built.sample(PROMPTS, SEEDS)) == expected


def test_few_logits_at_a_time_change_nothing(model, often_ending, monkeypatch) -> None:
    expected = exactly(often_ending(model).sample(PROMPTS, SEEDS))
    monkeypatch.setattr(sampler_module, "LOGITS_TOGETHER", 290 * 3)
    assert exactly(often_ending(model).sample(PROMPTS, SEEDS)) == expected


def test_little_room_for_the_cache_changes_nothing(llama, often_ending, monkeypatch) -> None:
    expected = exactly(often_ending(llama).sample(PROMPTS, SEEDS))
    monkeypatch.setattr(decoding, "CACHE_BYTES", 1)
    assert exactly(often_ending(llama).sample(PROMPTS, SEEDS)) == expected


def test_another_seed_says_something_else(llama, sampler) -> None:
    first = sampler(llama).sample(PROMPTS, SEEDS)
    second = sampler(llama).sample(PROMPTS, [seed + 5000 for seed in SEEDS])
    assert not any(a.tokens == b.tokens for a, b in zip(first, second, strict=True))


def test_stop_reasons_and_the_end_token(model, often_ending, tokenizer) -> None:
    built = often_ending(model)
    completions = built.sample(PROMPTS, SEEDS)
    for completion in completions:
        ends = [token in built.end_ids for token in completion.tokens]
        assert not any(ends[:-1])
        assert len(completion.logprobs) == len(completion.tokens)
        assert max(completion.logprobs) <= 0
        if completion.stop == "end":
            assert ends[-1]
            said = completion.tokens[:-1]
        else:
            assert not ends[-1] and len(completion.tokens) == 10
            said = completion.tokens
        assert completion.text == tokenizer.decode(said, skip_special_tokens=True)
    stops = [completion.stop for completion in completions]
    assert stops.count("end") > 20 and stops.count("length") > 0


def test_an_end_at_the_last_place_is_an_end(llama, sampler) -> None:
    built = sampler(llama, max_completion_length=1)
    built.end_ids = list(range(290))
    assert {c.stop for c in built.sample(PROMPTS, SEEDS)} == {"end"}
    assert {c.text for c in built.sample(PROMPTS, SEEDS)} == {""}


def test_end_tokens_are_the_tokenizers_and_the_generation_configs(tiny_llama, tokenizer) -> None:
    model = tiny_llama()
    assert end_token_ids(model, tokenizer) == [4]
    model.generation_config.eos_token_id = [9, 7]
    assert end_token_ids(model, tokenizer) == [4, 7, 9]
    model.generation_config.eos_token_id = None
    assert end_token_ids(model, tokenizer) == [4]


def test_refresh_takes_up_new_weights(tiny_llama, sampler) -> None:
    model = tiny_llama()
    built = sampler(model)
    before = built.sample(PROMPTS, SEEDS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.flip(0))
    built.refresh()
    after = built.sample(PROMPTS, SEEDS)
    assert [c.tokens for c in before] != [c.tokens for c in after]
    close(after, sampler(model).sample(PROMPTS, SEEDS))


def test_training_mode_is_given_back(gpt2, sampler) -> None:
    expected = sampler(gpt2).sample(PROMPTS[:4], SEEDS[:4])
    gpt2.train()
    try:
        close(expected, sampler(gpt2).sample(PROMPTS[:4], SEEDS[:4]))  # no dropout while sampling
        assert gpt2.training
    finally:
        gpt2.eval()


def test_a_prompt_that_leaves_no_room_is_refused(model, sampler) -> None:
    built = sampler(model)
    fitting, too_long = " cat" * 54, " cat" * 55
    assert [len(ids) for ids in encode_prompts(built.tokenizer, [fitting, too_long])] == [54, 55]
    built.sample([fitting], [0])
    with pytest.raises(BadInput, match="prompt too long: 55 tokens and a completion of 10"):
        built.sample(["a", too_long], [0, 1])


def test_an_empty_plain_prompt_is_continued(model, sampler, tokenizer) -> None:
    built = sampler(model)
    assert built.encode([""]) == [[tokenizer.eos_token_id]]
    [completion] = built.sample([""], [0])
    assert len(completion.tokens) >= 1


def test_plain_prompts_begin_as_the_tokenizer_begins_texts(real_model) -> None:
    tokenizer = load_tokenizer(real_model("stories260K"))
    begins = tokenizer("Lily")["input_ids"]
    assert begins[0] == tokenizer.bos_token_id  # what this test is about
    assert encode_prompts(tokenizer, ["Lily", ""]) == [begins, [tokenizer.bos_token_id]]


def test_no_prompts_give_no_completions(llama, sampler) -> None:
    assert sampler(llama).sample([], []) == []


def tiny(kind: str, **settings: Any) -> Any:
    sizes = {
        "vocab_size": 290,
        "hidden_size": 32,
        "d_model": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "initializer_range": 0.15,
        "init_std": 0.15,
    }
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 4}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(sizes | special | settings))
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@torch.no_grad()
def test_rows_of_recurrent_layers_join_and_leave(often_ending) -> None:
    model = tiny("lfm2", layer_types=["conv", "full_attention"])
    built = often_ending(model)
    completions = built.sample(PROMPTS, SEEDS)
    assert len({len(completion.tokens) for completion in completions}) > 3
    for prompt, completion in zip(built.encode(PROMPTS), completions, strict=True):
        logits = model(torch.tensor([[*prompt, *completion.tokens]])).logits[0, len(prompt) - 1 :]
        expected = logits[:-1].log_softmax(-1)
        expected = expected.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("bart", "bart models cannot be sampled: with padding on the left"),
        ("xlm-roberta", "xlm-roberta models cannot be sampled: with padding on the left"),
        ("mamba", "mamba models cannot be sampled: they keep no cache"),
    ],
)
def test_models_that_would_be_sampled_wrongly_are_refused(sampler, kind: str, line: str) -> None:
    changes = {"is_decoder": True} if kind != "mamba" else {"state_size": 4}
    with pytest.raises(BadInput, match=line):
        sampler(tiny(kind, **changes))


@pytest.mark.parametrize("engine", ["ours", "transformers"])
def test_logits_that_are_no_numbers_are_bad_input(tiny_llama, sampler, engine: str) -> None:
    model = tiny_llama().train()
    built = sampler(model, engine=engine)
    model.config._name_or_path = "runs/broken"
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    built.refresh()
    with pytest.raises(NotFinite, match="runs/broken gives logits that are not finite") as caught:
        built.sample(PROMPTS, SEEDS)
    assert isinstance(caught.value, BadInput) and "learning_rate" not in str(caught.value)
    assert model.training


def test_tokens_may_be_drawn_elsewhere(llama, sampler, monkeypatch) -> None:
    assert {"mps": torch.device("cpu")} == DRAWN_ON
    expected = exactly(sampler(llama).sample(PROMPTS, SEEDS))
    monkeypatch.setitem(DRAWN_ON, "cpu", torch.device("meta"))
    with pytest.raises((NotImplementedError, RuntimeError)):
        sampler(llama).sample(PROMPTS, SEEDS)  # drawn on a device that holds no numbers
    monkeypatch.setitem(DRAWN_ON, "cpu", torch.device("cpu"))
    assert exactly(sampler(llama).sample(PROMPTS, SEEDS)) == expected
