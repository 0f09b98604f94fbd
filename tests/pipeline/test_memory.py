"""The memory estimate against what processes took, its arithmetic against hand counts, and what it tells people."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crestline.models import decoding, kv_cache, logprobs, reward_model, sampler
from crestline.models.load import load_tokenizer, new_llama, save_model
from crestline.models.lora import with_adapters
from crestline.models.reward import new_reward_model
from crestline.models.size import size_of
from crestline.models.tokenizer import train_tokenizer
from crestline.pipeline import memory as pipeline_memory
from crestline.pipeline import sample
from crestline.pipeline.configs import BestOfNConfig
from crestline.pipeline.memory import estimate, memory_line, pretrained_size
from crestline.rewards.configs import Shaping
from crestline.training import memory
from crestline.training.configs import Lora, Optimization, PretrainConfig, SftConfig
from crestline.training.direct_preference import DirectBatch, EncodedRanking
from crestline.training.dpo_configs import DpoConfig
from crestline.training.lengths import Lengths, lengths_of
from crestline.training.memory import (
    OTHER,
    OURS,
    PROCESS,
    Asked,
    Estimate,
    Place,
    activations,
    preferred,
    sampling,
    trained,
)
from crestline.training.reward_configs import Ensemble, RewardConfig
from crestline.training.rl_configs import Ppo, RlConfig
from crestline.training.savings import changes_of

SENTENCES = [
    f"Once there was a fox number {n} who liked red apples and long walks." for n in range(300)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/ (23M parameters), judge/, demonstrations.jsonl, prompts.jsonl, rankings.jsonl."""
    place = tmp_path_factory.mktemp("memory")
    tokenizer = train_tokenizer(SENTENCES, 400)
    model = new_llama(
        vocab_size=4096,
        hidden_size=512,
        num_layers=8,
        num_heads=8,
        intermediate_size=1024,
        max_position=256,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        seed=0,
    )
    save_model(model, tokenizer, place / "model")
    new_reward_model(place / "model", seed=0, max_length=64).write(place / "judge")
    halves = [text.partition(" who") for text in SENTENCES]
    rows: dict[str, list[Any]] = {
        "prompts": [{"prompt": who} for who, *_ in halves],
        "demonstrations": [{"prompt": a, "completion": f"{b}{c}" * 3} for a, b, c in halves],
        "rankings": [{"prompt": a, "chosen": f"{b}{c}", "rejected": " no."} for a, b, c in halves],
    }
    for name, values in rows.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
    return place


def sft_of(folder: Path, **changes: Any) -> SftConfig:
    return SftConfig(
        model_name_or_path=str(folder / "model"),
        dataset_name=str(folder / "demonstrations.jsonl"),
        output_dir=str(folder / "out"),
        **changes,
    )


def rl_of(folder: Path, **changes: Any) -> RlConfig:
    return RlConfig(
        model_name_or_path=str(folder / "model"),
        dataset_name=str(folder / "prompts.jsonl"),
        output_dir=str(folder / "rl"),
        **changes,
    )


def dpo_of(folder: Path, **changes: Any) -> DpoConfig:
    return DpoConfig(
        model_name_or_path=str(folder / "model"),
        dataset_name=str(folder / "rankings.jsonl"),
        output_dir=str(folder / "dpo"),
        **changes,
    )


def best_of(folder: Path, **changes: Any) -> BestOfNConfig:
    given = {
        "model_name_or_path": str(folder / "model"),
        "reward_model_name_or_path": str(folder / "judge"),
        "dataset_name": str(folder / "prompts.jsonl"),
        "output_file": str(folder / "best.jsonl"),
    }
    return BestOfNConfig(**given | changes)


def weights_of(folder: Path) -> int:
    """Bytes of the model."""
    size = size_of(str(folder / "model"))
    assert size is not None
    return 4 * size.num_parameters


def total(config: Any) -> int:
    found = estimate(config)
    assert found is not None
    return found.total


# ---------------------------------------------------------------- against processes


PEAK = """
import sys
from crestline.cli.main import main
code = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def peak(*words: str) -> int:
    """Bytes that `crestline ...` took at most, in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-c", PEAK, *words, "--num_threads", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    return 1024 * int(ended.stdout.splitlines()[-1])


def words_of(config: Any, *names: str) -> list[str]:
    """Flags for these settings of a config."""
    return [word for name in names for word in (f"--{name}", str(getattr(config, name)))]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("verb", ["sft", "dpo", "best-of-n"])
def test_the_estimate_is_near_what_a_process_takes(verb: str, folder: Path, tmp_path: Path) -> None:
    trains = ("model_name_or_path", "dataset_name", "batch_size", "num_train_epochs")
    config: Any
    if verb == "best-of-n":
        few = (folder / "prompts.jsonl").read_text().splitlines()[:8]
        (tmp_path / "prompts.jsonl").write_text("\n".join(few))
        config = best_of(
            folder,
            dataset_name=str(tmp_path / "prompts.jsonl"),
            num_generations=32,
            max_completion_length=64,
        )
        words = words_of(
            config,
            *("model_name_or_path", "reward_model_name_or_path", "dataset_name"),
            *("num_generations", "max_completion_length"),
        )
        found = peak(verb, *words, "--output_file", str(tmp_path / "best.jsonl"))
    else:
        make = sft_of if verb == "sft" else dpo_of
        config = make(folder, batch_size=16, num_train_epochs=0.1)
        found = peak(verb, *words_of(config, *trains), "--output_dir", str(tmp_path / "out"))
    assert 0.75 < total(config) / found < 1.33
    # and without what Python and torch take anyway
    assert 0.6 < (total(config) - PROCESS) / (found - PROCESS) < 1.67


# ---------------------------------------------------------------- sizes and lengths


def test_sizes_come_from_the_folder(folder: Path, tmp_path: Path) -> None:
    found = size_of(str(folder / "model"))
    assert found is not None
    layer = 4 * 512 * 512 + 3 * 512 * 1024 + 2 * 512
    assert found.num_parameters == 4096 * 512 + 8 * layer + 512
    assert (found.num_layers, found.kv_width, found.context, found.kind) == (8, 512, 256, "llama")
    assert size_of("someone/on-the-hub") is None and size_of(str(tmp_path)) is None
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "config.json").write_text((folder / "model" / "config.json").read_text())
    (torn / "model.safetensors").write_bytes(b"\xff" * 20)
    assert size_of(str(torn)) is None


def test_a_model_to_come_has_the_size_it_will_have(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "model")
    config = PretrainConfig(vocab_size=len(tokenizer), hidden_size=64, num_layers=3, num_heads=4)
    model = new_llama(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_layers=3,
        num_heads=4,
        intermediate_size=192,
        max_position=128,
        pad_token_id=0,
        eos_token_id=1,
        seed=0,
    )
    assert pretrained_size(config).num_parameters == sum(p.numel() for p in model.parameters())


def test_adapters_and_ensembles_have_the_size_of_what_they_stand_on(
    folder: Path, tmp_path: Path
) -> None:
    base = size_of(str(folder / "model"))
    assert base is not None
    (tmp_path / "adapter").mkdir()
    named = {"base_model_name_or_path": str(folder / "model")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(named))
    assert size_of(str(tmp_path / "adapter")) == base
    new_reward_model(folder / "model", seed=0, max_length=64).write(tmp_path / "both" / "a")
    (tmp_path / "both" / "b").symlink_to(tmp_path / "both" / "a")
    (tmp_path / "both" / "ensemble.json").write_text(json.dumps({"members": ["a", "b"]}))
    one, both = size_of(str(tmp_path / "both" / "a")), size_of(str(tmp_path / "both"))
    assert one is not None and both is not None
    assert both.num_parameters == 2 * one.num_parameters and both.hidden_size == 512


def test_weights_of_adapters_are_counted(folder: Path) -> None:
    size, lora = size_of(str(folder / "model")), Lora(use_peft=True, lora_r=8)
    assert size is not None
    from crestline.models.load import load_policy

    model = with_adapters(load_policy(folder / "model"), lora, task="policy", seed=0)
    added = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained(size, lora)["weights"] == 4 * (size.num_parameters + added)
    assert trained(size, lora)["gradients and optimiser"] == 12 * added


def test_lengths_are_counted_by_the_models_own_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "model")
    counts = [len(tokenizer(text)["input_ids"]) + 2 for text in SENTENCES]
    found = lengths_of(SENTENCES, str(folder / "model"))
    assert found.longest == max(counts) and found.mean == pytest.approx(sum(counts) / len(counts))
    guessed = lengths_of(["x" * 300], "nowhere")
    assert guessed == Lengths(102.0, 0.0, 102)
    assert lengths_of([], "nowhere").longest == 2


# ---------------------------------------------------------------- what changes it


@pytest.mark.parametrize(
    "changed",
    [
        {"optimization": Optimization(micro_batch_size=4)},
        {"optimization": Optimization(gradient_checkpointing=True)},
        {"optimization": Optimization(dtype="bfloat16")},
        {"lora": Lora(use_peft=True)},
        {"max_length": 16},
    ],
)
def test_each_saving_of_sft_saves(folder: Path, changed: dict[str, Any]) -> None:
    before = {"optimization": Optimization(dtype="float32")}
    assert total(sft_of(folder, **before | changed)) < total(sft_of(folder, **before))


def test_what_rl_holds_beside_the_policy(folder: Path) -> None:
    plain = total(rl_of(folder))
    weights = weights_of(folder)
    assert total(rl_of(folder, algorithm=Ppo())) > plain + 4 * weights
    assert total(rl_of(folder, max_completion_length=128)) > plain
    judge = {"reward_model_name_or_path": str(folder / "judge")}
    raw = Shaping(reward_shaping="raw")
    assert total(rl_of(folder, shaping=raw, **judge)) == pytest.approx(plain + weights, rel=0.01)
    low = {**judge, "optimization": Optimization(dtype="bfloat16")}
    asked = total(rl_of(folder, **low)) - total(rl_of(folder, shaping=raw, **low))
    assert asked == pytest.approx(weights / 2, rel=0.01)  # the reference's sampler
    assert total(rl_of(folder, lora=Lora(use_peft=True))) < plain - 2 * weights


def test_what_ppo_could_save_with_one_completion_a_prompt(folder: Path) -> None:
    """Other algorithms need two."""
    config = rl_of(folder, algorithm=Ppo(), num_generations=1)
    assert "take --algorithm rloo" in dict(changes_of(config))


def test_members_trained_one_by_one_stay_in_memory(folder: Path) -> None:
    config = RewardConfig(
        model_name_or_path=str(folder / "model"), dataset_name=str(folder / "rankings.jsonl")
    )
    weights = weights_of(folder)
    three = replace(config, ensemble=Ensemble(num_members=3, members="models"))
    heads = replace(config, ensemble=Ensemble(num_members=3))
    assert total(three) == total(config) + 2 * weights and total(heads) == total(config)
    assert total(replace(config, half_depth=True)) < total(config)


@pytest.mark.parametrize(
    "changed",
    [
        {"optimization": Optimization(dtype="float32", micro_batch_size=4)},
        {"optimization": Optimization(dtype="float32", gradient_checkpointing=True)},
        {"lora": Lora(use_peft=True)},
        {"max_length": 8},
    ],
)
def test_each_saving_of_dpo_saves(folder: Path, changed: dict[str, Any]) -> None:
    before = {"optimization": Optimization(dtype="float32")}
    assert total(dpo_of(folder, **before | changed)) < total(dpo_of(folder, **before))


def test_dpo_holds_its_reference_unless_adapters_are_trained(folder: Path) -> None:
    whole, adapted = estimate(dpo_of(folder)), estimate(dpo_of(folder, lora=Lora(use_peft=True)))
    assert whole is not None and adapted is not None
    assert whole.pieces["reference"] == weights_of(folder) and adapted.pieces["reference"] == 0
    assert "give --use_peft" in whole.flags and "give --use_peft" not in adapted.flags


@pytest.mark.parametrize(
    ("group", "prompt", "answer", "batch", "micro"),
    [
        (2, 10, 20, 16, 128),  # all in one part
        (2, 10, 20, 16, 8),  # four rankings
        (5, 10, 20, 16, 2),  # one ranking: it is never cut
        (4, 30, 10, 400, 1600),  # 2,048 tokens
        (3, 400, 700, 4, 128),  # one ranking has more
    ],
)
def test_a_part_of_dpo_has_the_tokens_that_training_gives_it(
    folder: Path, group: int, prompt: int, answer: int, batch: int, micro: int
) -> None:
    ranking = EncodedRanking([1] * prompt, [[2] * answer] * group, tuple(range(group)), 0.0, 0.0)
    parts = list(DirectBatch([ranking] * batch, batch, "cpu").parts(micro))
    rows = max(len(part.rankings) for part in parts) * group
    tokens = max(sum(ranking.num_tokens for ranking in part.rankings) for part in parts)
    optimization, place = Optimization(micro_batch_size=micro, dtype="float32"), Place()
    config = DpoConfig(max_length=2000, batch_size=batch, optimization=optimization)
    own = size_of(str(folder / "model"))
    assert own is not None
    own = replace(own, context=2000)
    for size, kept, read in (
        (own, OURS, tokens),
        (replace(own, kind="mamba"), OTHER, rows * (prompt + answer)),
    ):
        lengths = (Lengths(prompt, 0.0, prompt), Lengths(answer, 0.0, answer))
        found = preferred(config, size, *lengths, float(group), place)
        expected = activations(size, kept, read, prompt + answer, optimization, place)
        assert found["activations"] == pytest.approx(expected, rel=0.05)


def test_best_of_n_holds_scorers_all_the_time_and_the_policy_while_it_samples(
    folder: Path, tmp_path: Path
) -> None:
    config, weights = best_of(folder, max_completion_length=128), weights_of(folder)
    found = estimate(config)
    assert found is not None
    assert found.pieces["policy"] == weights
    assert found.pieces["reward model"] == pytest.approx(weights, rel=0.01)
    assert "scoring" not in found.pieces  # it comes later, and needs less
    other = tmp_path / "other"
    other.symlink_to(folder / "judge")
    judged = replace(config, judge=str(other))
    assert total(judged) == found.total + found.pieces["reward model"]
    assert total(replace(config, judge="judge.py:score")) == found.total
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"prompt": "a", "completions": ["b", "c"]}) + "\n")
    given = estimate(replace(config, samples_file=str(samples)))
    assert given is not None and "policy" not in given.pieces and given.pieces["scoring"] > 0
    assert given.total < found.total - weights
    assert memory_line(replace(config, judge="someone/judge"))[0].startswith(
        "memory: not estimated"
    )
    told = estimate(judged)
    assert told is not None and told.flags[0] == "lower --max_completion_length"
    assert {"leave out --judge", "sample first and give --samples_file"} <= set(told.flags)


def test_keys_and_values_are_those_of_the_cache(folder: Path) -> None:
    size = size_of(str(folder / "model"))
    assert size is not None
    size = replace(size, vocab_size=0)
    token = 4 * 2 * 8 * 512
    short = Asked(rows=48, group=16, prompt=20, written=30)
    assert sampling(size, short, 4, ours=True) == token * 48 * (20 + 30)
    assert sampling(size, short, 2, ours=True) == token // 2 * 48 * (20 + 30)
    stored = replace(short, prompt=200)
    assert sampling(size, stored, 4, ours=True) == token * (48 * 30 + 3 * 200)
    assert sampling(size, stored, 4, ours=False) == token * 48 * (200 + 30)
    many = Asked(rows=10_000, group=100, prompt=20, written=1000)
    assert sampling(size, many, 4, ours=True) == pytest.approx(2 << 30, rel=0.05)
    assert sampling(size, many, 4, ours=False) == token * 256 * 1020


# ---------------------------------------------------------------- words


def test_what_fits_and_what_does_not() -> None:
    found = Estimate(
        {"weights": 2 * 10**9, "activations": 6 * 10**9, "dust": 1}, ["a", "b", "c", "d"]
    )
    assert found.told(None) == "about 8.0 GB: activations 6.0 GB, weights 2.0 GB"
    assert found.told(9 * 10**9) == found.told(None) + "; 9.0 GB are free"
    assert found.told(7 * 10**9) == found.told(None) + "; only 7.0 GB are free: a, or b, or c"


def test_the_most_helpful_flag_comes_first(folder: Path) -> None:
    flags = {}
    for size in (1, 128):
        found = estimate(sft_of(folder, optimization=Optimization(micro_batch_size=size)))
        assert found is not None and found.flags[-1] == "take a smaller model"
        flags[size] = found.flags
    assert flags[1][0] == "give --use_peft"  # one row at a time: weights take most
    assert flags[128][0] == "give --gradient_checkpointing"
    assert "lower --micro_batch_size" in flags[128] and "lower --micro_batch_size" not in flags[1]
    found = estimate(sft_of(folder, lora=Lora(use_peft=True)))
    assert found is not None and "give --use_peft" not in found.flags


def test_a_hub_name_has_no_size_yet(folder: Path) -> None:
    line, is_too_much = memory_line(replace(sft_of(folder), model_name_or_path="someone/model"))
    assert line.startswith("memory: not estimated") and not is_too_much


def test_on_a_gpu_arithmetic_is_half_as_wide_and_torch_itself_lies_elsewhere(folder: Path) -> None:
    assert Place("cuda").width(Optimization()) == 2
    assert Place("cuda").width(Optimization(dtype="float32")) == 4
    found = estimate(sft_of(folder), "cuda:1")
    assert found is not None and "GPU context" in found.pieces
    assert "Python and torch" not in found.pieces


def test_what_is_said_here_is_what_the_code_does() -> None:
    """The estimate is torch-free, so it repeats some constants of modules that are not."""
    assert logprobs.KEPT_ELEMENTS * memory.FLOAT == memory.KEPT_LOGPROBS
    assert logprobs.ROWS_TOGETHER == memory.SLICE
    assert sampler.ROWS_AT_ONCE == memory.ROWS_SAMPLED
    assert sampler.LOGITS_TOGETHER == memory.LOGITS_SAMPLED
    assert decoding.FEWEST_ROWS_AT_ONCE == memory.FEWEST_ROWS_SAMPLED
    assert decoding.CACHE_BYTES == memory.CACHE
    assert kv_cache.SHORT_PROMPT == memory.SHORT_PROMPT
    assert reward_model.BATCH_TOKENS == memory.TOKENS_SCORED
    assert sample.PROMPTS_PER_BATCH == pipeline_memory.PROMPTS_SAMPLED
