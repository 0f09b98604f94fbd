from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from crestline.models.load import load_policy, load_tokenizer
from crestline.models.sampler import PolicySampler, encode_prompts, end_token_ids, uniforms
from crestline.types import BadInput, Completion, PromptText

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
        settings = {"max_completion_length": 10, "temperature": 1.0}
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


def test_uniforms_are_a_function_of_each_rows_seed() -> None:
    alone = np.concatenate([uniforms([seed], 20) for seed in (3, 2**63, 17)])
    assert (uniforms([3, 2**63, 17], 20) == alone).all()
    assert (uniforms([3], 7)[0] == alone[0, :7]).all()
    assert len(np.unique(uniforms(range(1000), 50))) == 50_000


@pytest.mark.parametrize(
    "seeds", [range(2000), range(0, 2000 << 40, 1 << 40)], ids=["small", "far"]
)
def test_uniforms_are_uniform_and_unrelated(seeds) -> None:
    numbers = uniforms(seeds, 50)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    assert min(stats.kstest(column, "uniform").pvalue for column in numbers.T[:10]) > 1e-4
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.015
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.015


def test_fast_decoder_and_transformers_say_the_same(llama, often_ending) -> None:
    fast, slow = often_ending(llama), often_ending(llama)
    assert fast.decoder is not None
    slow.decoder = None
    close(fast.sample(PROMPTS, SEEDS), slow.sample(PROMPTS, SEEDS))


def test_trained_model_through_both_engines(real_model) -> None:
    folder = real_model("stories260K")
    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    fast = PolicySampler(model, tokenizer, max_completion_length=30)
    slow = PolicySampler(model, tokenizer, max_completion_length=30)
    slow.decoder = None
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


def test_neighbours_change_nothing(model, often_ending) -> None:
    together = often_ending(model).sample(PROMPTS, SEEDS)
    small = often_ending(model, batch_size=5).sample(PROMPTS, SEEDS)
    alone = often_ending(model, batch_size=1).sample(PROMPTS, SEEDS)
    lengths = {len(completion.tokens) for completion in together}
    assert len(lengths) >= 5  # rows finish, and leave, at many times
    close(together, alone)
    close(together, small)
    backwards = often_ending(model).sample(PROMPTS[::-1], SEEDS[::-1])
    close(together, backwards[::-1])


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
