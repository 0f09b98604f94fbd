import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from crestline.models.load import save_model
from crestline.models.reward import RewardEnsemble, load_reward_model, new_reward_model
from crestline.models.tokenizer import train_tokenizer
from crestline.pipeline.configs import RewardJoinConfig
from crestline.pipeline.reward_join import reward_join
from crestline.types import BadInput

PROMPTS = ["Say hen. ", "Say dog. ", "Say cat. "]
TEXTS = ["hen", "a dog and a cat", "cat cat cat cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_llama) -> Path:
    """Two reward models of one backbone, one of another with another tokenizer, and rankings."""
    torch.set_num_threads(1)
    root: Path = tmp_path_factory.mktemp("join")
    tokenizer = train_tokenizer([" ".join(PROMPTS + TEXTS)] * 5, 300)
    llama = tiny_llama(tokenizer)
    save_model(llama, tokenizer, root / "llama")
    other = train_tokenizer(["Other words for another reading."] * 5, 310)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertConfig(vocab_size=len(other), intermediate_size=24, pad_token_id=0, **sizes)
    save_model(BertModel(bert), other, root / "bert")
    for name, backbone, seed in [("a", "llama", 1), ("b", "llama", 2), ("c", "bert", 3)]:
        new_reward_model(root / backbone, seed=seed, max_length=40).write(root / name)
    rows = [
        {"prompt": f"{n} {prompt}", "chosen": text + " yes", "rejected": text}
        for n in range(8)
        for prompt, text in zip(PROMPTS, TEXTS, strict=True)
    ]
    (root / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def join(folder: Path, models: str, output: Path, **changes: Any) -> Path:
    names = ",".join(str(folder / name) for name in models)
    return reward_join(RewardJoinConfig(reward_models=names, output_dir=str(output), **changes))


def test_an_ensemble_of_different_models_is_calibrated_and_measured(folder, tmp_path) -> None:
    rankings = str(folder / "rankings.jsonl")
    path = join(folder, "abc", tmp_path / "joined", aggregate="min", dataset_name=rankings)
    found = load_reward_model(path)
    assert isinstance(found, RewardEnsemble) and found.aggregate == "min"
    assert found.num_members == 3 and found.calibration.mean < 0
    told = json.loads((tmp_path / "joined" / "evaluation.json").read_text())
    assert told["how"] == "ensemble" and 0 <= told["accuracy"] <= 1
    assert told["ensemble"]["num_members"] == 3
    assert told["mean"] == pytest.approx(found.calibration.mean)
    assert [Path(row["reward_model"]).name for row in told["members"]] == ["a", "b", "c"]
    for row, member, name in zip(told["members"], found.members, "abc", strict=True):
        assert row["mean"] == pytest.approx(member.calibration.mean, abs=1e-6)
        alone = load_reward_model(folder / name)
        asked = [f"{n} {prompt}" for n in range(8) for prompt in PROMPTS]
        better = np.array(alone.score(asked, [f"{text} yes" for text in TEXTS] * 8))
        won = better > alone.score(asked, TEXTS * 8)
        assert row["accuracy"] == pytest.approx(won.mean())
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
    before = (path / "ensemble.json").stat().st_mtime_ns
    assert join(folder, "abc", tmp_path / "joined", aggregate="min", dataset_name=rankings) == path
    assert (path / "ensemble.json").stat().st_mtime_ns == before


def test_an_average_is_one_plain_model(folder, tmp_path) -> None:
    path = join(folder, "ab", tmp_path / "averaged", how="average")
    plain = AutoModelForSequenceClassification.from_pretrained(path)
    heads = [load_reward_model(folder / name).model.score.weight for name in "ab"]
    torch.testing.assert_close(plain.score.weight, (heads[0] + heads[1]) / 2)
    assert not (tmp_path / "averaged" / "evaluation.json").exists()
    assert load_reward_model(path).num_members == 1


def test_what_cannot_be_joined_leaves_nothing(folder, tmp_path) -> None:
    with pytest.raises(BadInput, match="cannot be averaged: architectures differ"):
        join(folder, "ac", tmp_path / "mixed", how="average")
    assert not (tmp_path / "mixed").exists()
    RewardEnsemble([load_reward_model(folder / "a")]).write(folder / "e")  # type: ignore[list-item]
    with pytest.raises(BadInput, match="is an ensemble itself; name its members"):
        join(folder, "ae", tmp_path / "nested")
    with pytest.raises(ValueError, match="reward_models must name at least two"):
        RewardJoinConfig(reward_models="a,", output_dir="x")
    with pytest.raises(BadInput, match="--reward_models is missing"):
        reward_join(RewardJoinConfig(output_dir=str(tmp_path / "none")))
