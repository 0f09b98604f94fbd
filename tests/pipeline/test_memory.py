"""The memory estimate against what processes took, its arithmetic against hand counts, and what it tells people."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crestline.models import logprobs, sampler
from crestline.models.load import load_tokenizer, new_llama, save_model
from crestline.models.lora import with_adapters
from crestline.models.reward import new_reward_model
from crestline.models.size import size_of
from crestline.models.tokenizer import train_tokenizer
from crestline.pipeline.memory import estimate, memory_line, pretrained_size
from crestline.training import memory
from crestline.training.configs import Lora, Optimization, PretrainConfig, SftConfig
from crestline.training.memory import PROCESS, Estimate, Lengths, Place, lengths_of, trained
from crestline.training.reward_configs import Ensemble, RewardConfig
from crestline.training.rl_configs import Ppo, RlConfig

SENTENCES = [
    f"Once there was a fox number {n} who liked red apples and long walks." for n in range(300)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/ (26M parameters), judge/, demonstrations.jsonl, prompts.jsonl, rankings.jsonl."""
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
    rows: dict[str, list[Any]] = {
        "prompts": [{"prompt": text[:24]} for text in SENTENCES],
        "demonstrations": [{"prompt": t[:24], "completion": t[24:] * 3} for t in SENTENCES],
        "rankings": [{"prompt": t[:24], "chosen": t[24:], "rejected": " no."} for t in SENTENCES],
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


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_estimate_is_near_what_a_process_takes(folder: Path, tmp_path: Path) -> None:
    config = sft_of(folder, batch_size=16, num_train_epochs=0.1)
    found = peak(
        *("sft", "--model_name_or_path", config.model_name_or_path, "--batch_size", "16"),
        *("--dataset_name", config.dataset_name, "--num_train_epochs", "0.1"),
        *("--output_dir", str(tmp_path / "out")),
    )
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


def test_what_rl_holds_beside_the_policy(folder: Path, tmp_path: Path) -> None:
    plain = total(rl_of(folder))
    weights = 4 * size_of(str(folder / "model")).num_parameters  # type: ignore[union-attr]
    assert total(rl_of(folder, algorithm=Ppo())) > plain + 4 * weights
    assert total(rl_of(folder, max_completion_length=128)) > plain
    new_reward_model(folder / "model", seed=0, max_length=64).write(tmp_path / "judge")
    judged = total(rl_of(folder, reward_model_name_or_path=str(tmp_path / "judge")))
    assert judged == pytest.approx(plain + weights, rel=0.01)
    assert total(rl_of(folder, lora=Lora(use_peft=True))) < plain - 2 * weights


def test_members_trained_one_by_one_stay_in_memory(folder: Path) -> None:
    config = RewardConfig(
        model_name_or_path=str(folder / "model"), dataset_name=str(folder / "rankings.jsonl")
    )
    weights = 4 * size_of(str(folder / "model")).num_parameters  # type: ignore[union-attr]
    three = replace(config, ensemble=Ensemble(num_members=3, members="models"))
    heads = replace(config, ensemble=Ensemble(num_members=3))
    assert total(three) == total(config) + 2 * weights and total(heads) == total(config)
    assert total(replace(config, half_depth=True)) < total(config)


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
