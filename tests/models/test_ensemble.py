import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from crestline.formulas.ensemble import aggregated, spread
from crestline.models.averaging import averaged
from crestline.models.calibration import Calibration
from crestline.models.heads import head_tensors, last_linear
from crestline.models.load import load_tokenizer, save_model
from crestline.models.reward import RewardEnsemble, RewardModel, load_reward_model, new_reward_model
from crestline.models.tokenizer import train_tokenizer
from crestline.training.configs import Lora
from crestline.types import BadInput, PromptText

CHAT: PromptText = [{"role": "user", "content": "Why did the hen cross the road?"}]
PROMPTS: list[PromptText] = [CHAT, "The cat", "", CHAT]
TEXTS = ["To get there.", " sat on the mat.", "<|end|>", "🐔 " * 60]


def trained(folder: Path, seed: int = 0, **changes: Any) -> RewardModel:
    """A reward model after something like training: every trainable weight has moved."""
    reward_model = new_reward_model(folder, seed=seed, **({"max_length": 48} | changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in reward_model.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return reward_model


@pytest.fixture(
    params=[("llama", False), ("roberta", False), ("distilbert", True), ("gpt2", True)], ids=str
)
def headed(request: pytest.FixtureRequest, backbone_folder) -> RewardModel:
    """Three heads on one trunk, with and without adapters, with and without biases."""
    name, lora = request.param
    settings = Lora(use_peft=True, lora_r=2) if lora else None
    return trained(backbone_folder(name), num_heads=3, lora=settings, uwo_coefficient=0.7)


class TestHeads:
    def test_each_is_drawn_anew_and_a_function_of_the_seed(self, backbone_folder) -> None:
        drawn = [
            head_tensors(
                new_reward_model(backbone_folder("llama"), seed=s, max_length=9, num_heads=4).model
            )
            for s in (0, 0, 1)
        ]
        first, again, other = (heads["weight"] for heads in drawn)
        assert first.shape == (4, 32)
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert len({tuple(row.tolist()) for row in first}) == 4

    def test_raw_has_a_column_for_each_and_trains_them_apart(self, headed: RewardModel) -> None:
        tokens = torch.tensor([headed.encode("The cat", " sat")])
        raw_NM = headed.raw(tokens, torch.ones_like(tokens))
        assert raw_NM.shape == (1, 3) and (headed.num_heads, headed.num_members) == (3, 3)
        raw_NM[0, 1].backward()
        heads = last_linear(headed.model).weight.grad
        assert heads[1].abs().sum() > 0 and heads[0].abs().sum() == 0 == heads[2].abs().sum()

    def test_the_folder_has_the_exact_mean_for_plain_loaders_and_all_heads_for_us(
        self, headed: RewardModel, tmp_path
    ) -> None:
        members_NM = headed.member_scores(PROMPTS, TEXTS)
        assert members_NM.shape == (4, 3) and (spread(members_NM) > 1e-3).all()
        headed.write(tmp_path)
        np.testing.assert_allclose(headed.member_scores(PROMPTS, TEXTS), members_NM, atol=1e-7)
        again = load_reward_model(tmp_path)
        np.testing.assert_allclose(again.member_scores(PROMPTS, TEXTS), members_NM, atol=1e-5)
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        assert plain.config.num_labels == 1
        for n, (prompt, text) in enumerate(zip(PROMPTS, TEXTS, strict=True)):
            tokens = torch.tensor([headed.encode(prompt, text)])
            with torch.no_grad():
                found = plain(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
            assert found.shape == (1, 1)
            assert float(found) == pytest.approx(members_NM[n].mean(), abs=1e-5)

    def test_on_one_scale_they_keep_their_order_and_the_folder_its_mean(self, headed, tmp_path):
        raw_NM = headed.member_scores(PROMPTS, TEXTS)
        means_M, temperatures_M = raw_NM.mean(0), np.array([0.5, 2.0, 4.0])
        headed.put_on_one_scale(means_M, temperatures_M)
        expected_NM = (raw_NM - means_M) / temperatures_M
        np.testing.assert_allclose(headed.member_scores(PROMPTS, TEXTS), expected_NM, atol=2e-5)
        shift = float(np.mean(means_M / temperatures_M))
        for how in ("mean", "min", "uwo"):
            headed.aggregate = how
            expected_N = aggregated(expected_NM, how, 0.7) + shift
            np.testing.assert_allclose(headed.score(PROMPTS, TEXTS), expected_N, atol=2e-5)
            headed.calibration = Calibration(0.3, 1.5)
            headed.write(tmp_path / how)
            again = load_reward_model(tmp_path / how)
            np.testing.assert_allclose(again.score(PROMPTS, TEXTS), expected_N, atol=2e-5)
            assert (again.aggregate, again.uwo_coefficient) == (how, 0.7)
            assert again.calibration == Calibration(0.3, 1.5)

    def test_heads_of_another_folder_are_refused(self, backbone_folder, tmp_path) -> None:
        trained(backbone_folder("llama"), num_heads=2).write(tmp_path)
        path = tmp_path / "heads.safetensors"
        heads = load_file(path)["weight"]
        for wrong, line in [
            (heads + 1, "its mean is not the folder's head"),
            (heads[:, :5], "heads of another model"),
        ]:
            save_file({"weight": wrong.contiguous()}, path)
            with pytest.raises(BadInput, match=line):
                load_reward_model(tmp_path)


@pytest.fixture(scope="module")
def other_reading(tiny_llama, tmp_path_factory) -> Path:
    """A backbone that reads with another tokenizer."""
    other = train_tokenizer(
        ["Quite another text, with other words in it, quite other words."] * 5, 300
    )
    folder: Path = tmp_path_factory.mktemp("other") / "backbone"
    save_model(tiny_llama(vocab_size=len(other)), other, folder)
    return folder


@pytest.fixture
def members(backbone_folder, other_reading) -> list[RewardModel]:
    """Members that share neither backbone nor tokenizer nor scale."""
    found = [trained(backbone_folder("bert"), 1), trained(other_reading, 2, max_length=20)]
    found.append(trained(backbone_folder("llama"), 3, num_heads=2))
    found[0].calibration = Calibration(-1.0, 0.1)
    found[1].calibration = Calibration(2.0, 5.0)
    return found


class TestEnsemble:
    def test_members_are_put_on_one_scale_before_they_are_joined(self, members) -> None:
        columns = [
            (np.array(member.score(PROMPTS, TEXTS)) - member.calibration.mean)
            / member.calibration.temperature
            for member in members
        ]
        expected_NM = np.stack(columns, axis=1)
        for how in ("mean", "min", "uwo"):
            ensemble = RewardEnsemble(members, aggregate=how, uwo_coefficient=0.3)
            np.testing.assert_allclose(ensemble.member_scores(PROMPTS, TEXTS), expected_NM)
            expected_N = aggregated(expected_NM, how, 0.3)
            np.testing.assert_allclose(ensemble.score(PROMPTS, TEXTS), expected_N)
        assert (ensemble.num_members, ensemble.max_length) == (3, 20)

    def test_it_survives_its_folder(self, members, tmp_path) -> None:
        ensemble = RewardEnsemble(
            members, aggregate="uwo", uwo_coefficient=0.3, calibration=Calibration(0.2, 1.7)
        )
        ensemble.write(tmp_path)
        again = load_reward_model(tmp_path)
        assert isinstance(again, RewardEnsemble)
        np.testing.assert_allclose(
            again.member_scores(PROMPTS, TEXTS), ensemble.member_scores(PROMPTS, TEXTS), atol=1e-5
        )
        assert (again.aggregate, again.uwo_coefficient) == ("uwo", 0.3)
        assert again.calibration == Calibration(0.2, 1.7)
        for number, member in enumerate(members):
            alone = load_reward_model(tmp_path / f"member-{number}")
            np.testing.assert_allclose(
                alone.score(PROMPTS, TEXTS), member.score(PROMPTS, TEXTS), atol=1e-5
            )

    def test_saved_it_is_checked_in_a_fresh_process(self, backbone_folder, tmp_path) -> None:
        adapted = trained(backbone_folder("gpt2"), 4, lora=Lora(use_peft=True, lora_r=2))
        ensemble = RewardEnsemble([adapted, adapted])
        ensemble.save(tmp_path / "model", PROMPTS, TEXTS, adapter=tmp_path / "adapter")
        again = load_reward_model(tmp_path / "adapter" / "member-1")
        np.testing.assert_allclose(
            again.score(PROMPTS, TEXTS), adapted.score(PROMPTS, TEXTS), atol=1e-5
        )

    def test_rows_tell_what_every_member_reads(self, members) -> None:
        ensemble = RewardEnsemble(members)
        rows = ensemble.rows(PROMPTS, TEXTS)
        alone = [member.rows(PROMPTS, TEXTS) for member in members]
        assert [row.is_truncated for row in rows] == [
            any(own[n].is_truncated for own in alone) for n in range(4)
        ]
        assert {row.is_truncated for row in rows} == {True, False}
        assert rows[0].num_tokens == sum(len(m.encode(PROMPTS[0], TEXTS[0])) for m in members)
        np.testing.assert_array_equal(
            ensemble.members_of_rows(rows), ensemble.member_scores(PROMPTS, TEXTS)
        )
        assert ensemble.score([], []) == []

    def test_damage_is_told_in_one_line(self, members, tmp_path) -> None:
        RewardEnsemble(members[:2]).write(tmp_path / "good")
        stored = json.loads((tmp_path / "good" / "ensemble.json").read_text())
        for number, (change, line) in enumerate(
            [
                ({"members": []}, "is damaged"),
                ({"aggregate": "median"}, "is damaged"),
                ({"members": ["member-0", "member-7"]}, "does not exist"),
                ({"uwo_coefficient": "much"}, "is damaged"),
            ]
        ):
            shutil.copytree(tmp_path / "good", tmp_path / str(number))
            text = json.dumps(stored | change)
            (tmp_path / str(number) / "ensemble.json").write_text(text)
            with pytest.raises(BadInput, match=line) as refused:
                load_reward_model(tmp_path / str(number))
            assert "\n" not in str(refused.value)
        shutil.copytree(tmp_path / "good", tmp_path / "nested" / "member-0")
        text = json.dumps(stored | {"members": ["member-0"]})
        (tmp_path / "nested" / "ensemble.json").write_text(text)
        with pytest.raises(BadInput, match="is an ensemble itself"):
            load_reward_model(tmp_path / "nested")

    def test_nobody_is_no_ensemble(self) -> None:
        with pytest.raises(ValueError, match="needs members"):
            RewardEnsemble([])


class TestAverage:
    def test_every_weight_is_the_mean_and_the_folder_is_plain(self, backbone_folder, tmp_path):
        models = [trained(backbone_folder("roberta"), seed) for seed in (1, 2, 3)]
        models[0].calibration, models[1].calibration = Calibration(1.0, 2.0), Calibration(2.0, 4.0)
        weights = [{k: v.clone() for k, v in m.model.state_dict().items()} for m in models]
        joined = averaged((f"model {n}", model) for n, model in enumerate(models))
        for name, tensor in joined.model.state_dict().items():
            expected = sum(w[name].double() for w in weights) / 3
            torch.testing.assert_close(tensor.double(), expected, atol=1e-7, rtol=1e-6)
        assert joined.calibration == Calibration(1.0, pytest.approx(7 / 3))
        joined.write(tmp_path)
        again = load_reward_model(tmp_path).score(PROMPTS, TEXTS)
        np.testing.assert_allclose(again, joined.score(PROMPTS, TEXTS), atol=1e-6)

    def test_heads_count_as_their_mean(self, backbone_folder) -> None:
        headed = trained(backbone_folder("llama"), 1, num_heads=3)
        mean_N = headed.member_scores(PROMPTS, TEXTS).mean(1)
        joined = averaged([("a", headed), ("b", headed)])
        assert joined.num_heads == 1 and headed.num_heads == 3
        np.testing.assert_allclose(joined.score(PROMPTS, TEXTS), mean_N, atol=1e-5)

    def test_what_differs_is_told_in_one_line(self, backbone_folder, other_reading) -> None:
        llama = trained(backbone_folder("llama"))
        half = trained(backbone_folder("llama"), half_depth=True)
        reading = trained(backbone_folder("llama"))
        reading.tokenizer = load_tokenizer(other_reading)
        for other, what in [
            (trained(backbone_folder("bert")), "architectures"),
            (half, "sizes"),
            (reading, "tokenizers"),
        ]:
            with pytest.raises(
                BadInput, match=f"a and b cannot be averaged: {what} differ"
            ) as refused:
                averaged([("a", llama), ("b", other)])
            assert "\n" not in str(refused.value)
        with pytest.raises(BadInput, match="at least two"):
            averaged([("a", llama)])
