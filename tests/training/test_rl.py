import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crestline.models.load import load_policy, load_tokenizer
from crestline.models.reference import Reference
from crestline.models.reward import load_reward_model
from crestline.models.sampler import PolicySampler
from crestline.rewards.configs import Shaping
from crestline.rewards.sources import LearnedReward, Reward
from crestline.runs.checkpoints import list_checkpoints
from crestline.runs.files import read_json, read_jsonl
from crestline.runs.tables import read_table
from crestline.training.configs import Optimization
from crestline.training.evaluation import distinct_2, evaluate, exact_kl
from crestline.training.grid import DistanceGrid
from crestline.training.rl import rl, split_prompts
from crestline.training.rl_configs import (
    Algorithm,
    Checkpointing,
    Grpo,
    Kl,
    Ppo,
    Reinforce,
    RlConfig,
    Rloo,
)
from crestline.training.rollouts import prompt_column, summary
from crestline.training.seeds import stream
from crestline.types import BadInput, Completion, NotFinite

CHAT = [{"role": "user", "content": "Say cat."}]


def settings(task: Path, **changes: Any) -> RlConfig:
    values: dict[str, Any] = {
        "model_name_or_path": str(task / "base"),
        "reward_model_name_or_path": str(task / "judge"),
        "dataset_name": str(task / "prompts.jsonl"),
        "output_dir": "unused",
        "num_updates": 14,
        "num_prompts": 4,
        "num_generations": 4,
        "max_completion_length": 6,
        "temperature": 0.8,
        "checkpoints": Checkpointing(distance_step=0.2, num_eval_prompts=4),
        "kl": Kl(beta=0.02),
        "shaping": Shaping(reward_shaping="raw"),
        "optimization": Optimization(
            learning_rate=1e-2, lr_scheduler_type="constant", save_updates=2, dtype="float32"
        ),
    }
    return RlConfig(**(values | changes))


@pytest.fixture(scope="module")
def finished(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rl(settings(task, output_dir=str(tmp_path_factory.mktemp("rl") / "run")))


@pytest.fixture(scope="module")
def lines(finished: Path) -> list[dict[str, Any]]:
    return read_jsonl(finished / "checkpoints.jsonl")


def test_the_grid_begins_at_the_reference(finished: Path, lines, task: Path) -> None:
    assert lines[0]["update"] == 0
    assert 0 <= lines[0]["distance"] <= 1e-6
    first = load_policy(finished / "checkpoint-0").state_dict()
    base = load_policy(task / "base").state_dict()
    assert all(torch.equal(first[name], base[name]) for name in base)


def test_kept_checkpoints_have_weights_a_line_and_an_evaluation(finished: Path, lines) -> None:
    kept = [line["update"] for line in lines]
    assert kept[-1] == 14 and 3 <= len(kept) < 15
    assert list_checkpoints(finished) == kept  # the others are gone
    names = sorted(path.name for path in (finished / "evaluations").iterdir())
    assert names == [f"evaluation_{update:05d}.parquet" for update in kept]
    resumable = [path.parent.name for path in finished.glob("checkpoint-*/optimizer.safetensors")]
    assert resumable == ["checkpoint-14"]
    assert all((finished / f"checkpoint-{n}" / "tokenizer.json").exists() for n in kept)


def test_lines_sum_up_their_evaluations(finished: Path, lines) -> None:
    for line in lines:
        rows = read_table(finished / "evaluations" / f"evaluation_{line['update']:05d}.parquet")
        assert rows["prompt_index"] == [0, 1, 2, 3]
        assert line["kl"] == pytest.approx(max(0, np.mean(rows["kl"])), abs=1e-9)
        assert line["distance"] == pytest.approx(math.sqrt(line["kl"]))
        assert line["proxy"] == pytest.approx(np.mean(rows["calibrated"]))
        error = np.std(rows["calibrated"], ddof=1) / 2
        assert line["proxy_standard_error"] == pytest.approx(error)
        assert line["raw_score"] == pytest.approx(np.mean(rows["score"]))
        assert line["mean_length"] == np.mean(rows["num_tokens"])
        assert line["end_fraction"] == np.mean([stop == "end" for stop in rows["stop"]])
        assert line["num_prompts"] == 4
        assert line["entropy"] > 0
    assert lines[-1]["distance"] > 0.2


def test_every_evaluation_asks_the_same_prompts_that_training_never_sees(finished, lines) -> None:
    asked = [
        read_table(finished / "evaluations" / f"evaluation_{line['update']:05d}.parquet")["prompt"]
        for line in lines
    ]
    assert all(prompts == asked[0] for prompts in asked)
    trained = {
        prompt
        for path in (finished / "completions").iterdir()
        for prompt in read_table(path)["prompt"]
    }
    assert not trained & set(asked[0])
    assert json.loads(asked[0][0])[0]["role"] == "user"


def test_a_checkpoint_read_back_says_and_measures_the_same(finished, lines, task) -> None:
    update = lines[1]["update"]
    policy = load_policy(finished / f"checkpoint-{update}").eval()
    reference = Reference(load_policy(task / "base").eval())
    tokenizer = load_tokenizer(finished / f"checkpoint-{update}")
    config = settings(task)
    sampler = PolicySampler(policy, tokenizer, max_completion_length=6, temperature=0.8)
    _, held = split_prompts(config)
    rows = read_table(finished / "evaluations" / f"evaluation_{update:05d}.parquet")
    judge = load_reward_model(task / "judge")
    texts = [prompt.text for prompt in held]
    raw = judge.score(texts, rows["completion"])
    np.testing.assert_allclose(rows["score"], raw, atol=1e-5)
    mean = read_json(task / "judge" / "config.json")["crestline"]["mean"]
    by_hand = [1 / (1 + math.exp(-(value - mean) / 1.5)) for value in raw]
    np.testing.assert_allclose(rows["calibrated"], by_hand, atol=1e-5)
    seeds = [stream(0, "evaluate", n) for n in range(4)]  # the same at every checkpoint
    reward = Reward([LearnedReward(judge)], [1.0], judge.calibration)
    found = evaluate(policy, reference, sampler, reward, held, seeds, micro_batch_size=3)
    assert found.rows["completion"] == rows["completion"]
    np.testing.assert_allclose(found.rows["kl"], rows["kl"], atol=1e-4)
    # KL of what is sampled: at the temperature of sampling
    completions, encoded = sampler.sample(texts, seeds), sampler.encode(texts)
    kl, entropy = exact_kl(policy, reference, encoded, completions, 9, temperature=0.8)
    np.testing.assert_allclose(found.rows["kl"], kl, atol=1e-5)
    for told in (found.summary, lines[1]):
        expected = sum(entropy) / sum(rows["num_tokens"])
        assert told["entropy"] == pytest.approx(expected, abs=1e-4)
    assert found.summary["kl"] != pytest.approx(
        np.mean(exact_kl(policy, reference, encoded, completions, 9)[0]), rel=1e-3
    )


def test_a_policy_whose_distance_is_no_number_is_not_measured(task: Path) -> None:
    """Whoever sampled: here the reference, as another engine might with weights of its own."""
    sound, broken = (load_policy(task / "base").eval() for _ in range(2))
    broken.model.norm.weight.data[0] = float("nan")
    sampler = PolicySampler(sound, load_tokenizer(task / "base"), max_completion_length=4)
    judge = load_reward_model(task / "judge")
    reward = Reward([LearnedReward(judge)], [1.0], judge.calibration)
    _, held = split_prompts(settings(task))
    asked = (sampler, reward, held, range(len(held)))
    found = evaluate(sound, Reference(sound), *asked, micro_batch_size=4)
    assert found.summary["distance"] == pytest.approx(0, abs=1e-3)
    with pytest.raises(NotFinite, match="at held-out prompts"):
        evaluate(broken, Reference(sound), *asked, micro_batch_size=4)


def test_metrics_of_every_update(finished: Path) -> None:
    metrics = read_jsonl(finished / "metrics.jsonl")
    assert [row["update"] for row in metrics] == list(range(1, 15))
    wanted = """reward reward_std objective/scores kl entropy completions/mean_length grad_norm loss
    completions/clipped_ratio learning_rate num_tokens step_seconds sampling/logprob_difference"""
    for row in metrics:
        assert set(wanted.split()) <= set(row)
        assert all(math.isfinite(value) for value in row.values())
        assert row["sampling/logprob_difference"] < 1e-4
    assert abs(metrics[0]["kl"]) < 1e-5 < metrics[-1]["kl"]


def test_completions_are_what_the_update_trained_on(finished: Path, task: Path) -> None:
    rows = read_table(finished / "completions" / "completions_00010.parquet")
    metrics = read_jsonl(finished / "metrics.jsonl")[9]
    assert rows["update"] == [10] * 16
    assert len(set(rows["prompt"])) == 4
    assert rows["prompt"] == [prompt for prompt in rows["prompt"][::4] for _ in range(4)]
    assert metrics["reward"] == pytest.approx(np.mean(rows["reward"]), abs=1e-6)
    assert metrics["objective/scores"] == pytest.approx(np.mean(rows["calibrated"]))
    assert metrics["num_tokens"] == sum(rows["num_tokens"])
    rewards = np.array(rows["reward"]).reshape(4, 4)
    advantages = (rewards - rewards.mean(1, keepdims=True)) * 4 / 3
    np.testing.assert_allclose(np.reshape(rows["advantage"], (4, 4)), advantages, atol=1e-5)
    prompts = [json.loads(prompt) for prompt in rows["prompt"]]
    raw = load_reward_model(task / "judge").score(prompts, rows["completion"])
    np.testing.assert_allclose(rows["score"], raw, atol=1e-5)
    charged = (np.array(rows["score"]) - np.array(rows["reward"])) / 0.02
    assert np.mean(charged) == pytest.approx(metrics["kl"], abs=1e-4)
    entropy = -sum(rows["logprob"]) / sum(rows["num_tokens"])
    assert metrics["entropy"] == pytest.approx(entropy, abs=1e-5)


def test_every_update_samples_anew_from_the_weights_before_it(finished: Path, lines) -> None:
    for line in lines[:-1]:
        checkpoint, update = finished / f"checkpoint-{line['update']}", line["update"] + 1
        rows = read_table(finished / "completions" / f"completions_{update:05d}.parquet")
        prompts = [json.loads(prompt) for prompt in rows["prompt"]]
        sampler = PolicySampler(
            load_policy(checkpoint).eval(),
            load_tokenizer(checkpoint),
            max_completion_length=6,
            temperature=0.8,
            dtype=torch.float32,
        )
        seeds = [stream(0, "sample", update, n) for n in range(len(prompts))]
        found = sampler.sample(prompts, seeds)
        assert [answer.text for answer in found] == rows["completion"]
        assert [sum(answer.logprobs) for answer in found] == pytest.approx(
            rows["logprob"], abs=1e-4
        )


@pytest.mark.parametrize(
    "algorithm",
    [Rloo(), Grpo(), Ppo(num_iterations=2), Reinforce()],
    ids=["rloo", "grpo", "ppo", "reinforce"],
)
def test_the_proxy_rises(algorithm: Algorithm, task: Path, tmp_path: Path) -> None:
    config = settings(
        task,
        output_dir=str(tmp_path / "run"),
        algorithm=algorithm,
        num_updates=28 if isinstance(algorithm, Ppo) else 14,
        num_generations=8,
        temperature=1.0,
        checkpoints=Checkpointing(distance_step=9.0, num_eval_prompts=4),
        optimization=Optimization(
            learning_rate=3e-2, lr_scheduler_type="constant", dtype="float32"
        ),
    )
    rows = read_jsonl(rl(config) / "metrics.jsonl")
    scores = [row["objective/scores"] for row in rows if "objective/scores" in row]
    assert np.mean(scores[-4:]) > np.mean(scores[:3]) + 0.05


def test_the_shipped_model_is_the_last_checkpoint(finished: Path) -> None:
    last, shipped = (
        load_policy(finished / name).state_dict() for name in ("checkpoint-14", "model")
    )
    assert all(torch.equal(last[name], shipped[name]) for name in last)


def test_without_beta_the_reference_is_asked_now_and_then(task: Path, tmp_path: Path) -> None:
    config = settings(task, output_dir=str(tmp_path / "run"), kl=Kl(), num_updates=6)
    metrics = read_jsonl(rl(config) / "metrics.jsonl")
    looked = ["kl" in row for row in metrics]
    assert looked[0] and 1 < sum(looked) < 6
    rows = read_table(tmp_path / "run/completions/completions_00006.parquet")
    assert rows["reward"] == pytest.approx(rows["score"], abs=1e-6)


def test_grpo_with_beta_charges_kl_in_the_loss(task: Path, tmp_path: Path) -> None:
    config = settings(
        task,
        output_dir=str(tmp_path / "run"),
        algorithm=Grpo(),
        kl=Kl(beta=0.1),
        num_updates=4,
    )
    metrics = read_jsonl(rl(config) / "metrics.jsonl")
    assert all("kl" in row and "clip_ratio/region_mean" in row for row in metrics)
    rows = read_table(tmp_path / "run/completions/completions_00004.parquet")
    assert rows["reward"] == pytest.approx(rows["score"], abs=1e-6)
    free = replace(config, output_dir=str(tmp_path / "free"), kl=Kl(beta=0.0))
    held = replace(config, output_dir=str(tmp_path / "held"), kl=Kl(beta=5.0))
    moved = [read_jsonl(rl(one) / "checkpoints.jsonl")[-1]["kl"] for one in (free, held)]
    assert moved[1] < 0.8 * moved[0]


def test_grpo_is_told_what_ran_out_of_room_and_how_much_there_was(task, brief, tmp_path) -> None:
    config = settings(
        task,
        model_name_or_path=str(brief),
        output_dir=str(tmp_path / "run"),
        algorithm=Grpo(loss_type="dr_grpo", mask_truncated_completions=True),
        kl=Kl(),
        num_updates=1,
    )
    (metrics,) = read_jsonl(rl(config) / "metrics.jsonl")
    rows = read_table(tmp_path / "run/completions/completions_00001.parquet")
    ended_N = np.array(rows["stop"]) == "end"
    gain_N = np.array(rows["advantage"]) * np.array(rows["num_tokens"])
    assert 0 < ended_N.sum() < 16 and abs(gain_N[~ended_N].sum()) > 0.1
    # by hand: fresh samples have ratios of 1
    assert metrics["loss"] == pytest.approx(-gain_N[ended_N].sum() / (16 * 6), abs=1e-4)


class Diary(DistanceGrid):
    """A grid that notes when it would have measured."""

    measured: list[int]
    distance = 0.0

    def measure(self, update: int) -> float:
        self.measured.append(update)
        return self.distance


def diary(
    kl: list[float | None], num_updates: int = 99, max_distance: float = 0.0, **changes: Any
) -> Diary:
    config = RlConfig(
        num_updates=num_updates,
        kl=Kl(max_distance=max_distance),
        checkpoints=Checkpointing(**({"distance_step": 0.5} | changes)),
    )
    grid = Diary(config, folder=None, cast=None, prompts=[])  # type: ignore[arg-type]
    grid.measured = []
    for update, value in enumerate(kl, 1):
        kept = grid.after_update(update, {} if value is None else {"kl": value})
        assert kept == (update in grid.measured)
    return grid


def test_the_grid_keeps_what_moved_on_by_a_step() -> None:
    # distances 0.1 0.4 0.6 | 0.9 1.2 | ... in steps of 0.5 since the last that was kept
    distances = [0.1, 0.4, 0.6, 0.6, 0.6, 0.9, 1.2, 1.2, 1.2]
    assert diary([d**2 for d in distances]).measured == [4, 8]  # the median of three lags by one
    assert diary([None, 0.01, None, 0.01]).measured == []
    assert diary([0.01, 0.01, 25.0, 0.01, 0.01]).measured == []  # one noisy update
    assert diary([1.0, 1.0, 0.04, 0.04, 0.04]).measured == [1, 4]  # on the way back too
    assert diary([-0.5, -0.5, 0.0]).measured == []  # k1 can be negative


def test_the_step_grows_with_the_distance() -> None:
    kl = [d**2 for d in (10.0, 10.8, 10.8, 11.1, 11.1)]
    assert diary(kl, distance_growth=0.1).measured == [1, 5]
    assert diary(kl, distance_growth=0.0).measured == [1, 3]


def test_the_grid_keeps_the_last_update_whatever_it_is() -> None:
    assert diary([0.0, 0.0, None], num_updates=3).measured == [3]


def test_the_grid_goes_on_from_its_state() -> None:
    kl = [float(d) ** 2 for d in np.linspace(0, 4, 30)]
    whole = diary(kl, max_checkpoints=3)
    for stop in range(1, 30):
        first = diary(kl[:stop], max_checkpoints=3)
        second = diary([], max_checkpoints=3)
        second.load(json.loads(json.dumps(first.state())))
        for update in range(stop + 1, 31):
            second.after_update(update, {"kl": kl[update - 1]})
        assert first.measured + second.measured == whole.measured
        assert second.state() == whole.state()


def test_the_step_doubles_when_too_many_are_kept(task: Path, tmp_path: Path) -> None:
    config = settings(
        task,
        output_dir=str(tmp_path / "run"),
        checkpoints=Checkpointing(distance_step=1e-4, max_checkpoints=3, num_eval_prompts=4),
    )
    folder = rl(config)
    state = read_json(folder / "checkpoint-14" / "trainer.json")["hook"]
    kept = len(read_jsonl(folder / "checkpoints.jsonl")) - 1
    assert state["kept"] == kept >= 6
    assert state["step"] == pytest.approx(1e-4 * 2 ** (kept // 3))


def test_held_out_prompts_are_drawn_by_the_seed_and_leave_training(task: Path) -> None:
    config = settings(task)
    train, held = split_prompts(config)
    assert (len(train), len(held)) == (16, 4)
    assert split_prompts(config) == (train, held)
    assert split_prompts(replace(config, seed=1))[1] != held
    given = replace(config, eval_dataset_name=str(task / "prompts.jsonl"))
    assert (len(split_prompts(given)[0]), len(split_prompts(given)[1])) == (20, 4)


def test_the_same_prompt_twice_is_held_out_twice(task: Path, tmp_path: Path) -> None:
    rows = [{"prompt": text} for text in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]] * 3
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, held = split_prompts(settings(task, dataset_name=str(tmp_path / "prompts.jsonl")))
    texts = [{prompt.text for prompt in side} for side in (train, held)]
    assert len(held) == len(texts[1]) == 2
    assert len(train) == 24 and not texts[0] & texts[1]


def test_too_few_prompts_are_refused(task: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n' * 50)
    config = settings(task, dataset_name=str(tmp_path / "prompts.jsonl"))
    with pytest.raises(BadInput, match="1 different prompts are too few"):
        split_prompts(config)


def test_a_prompt_that_is_too_long_stops_before_the_first_update(task, tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": word * 60}]} for word in "abcdefghijkl"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = settings(
        task,
        dataset_name=str(tmp_path / "prompts.jsonl"),
        output_dir=str(tmp_path / "run"),
    )
    with pytest.raises(BadInput, match="prompt too long"):
        rl(config)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_summary_and_distinct_2_by_hand() -> None:
    completions = [
        Completion(text="a", tokens=(1,) * length, logprobs=(-1.0,) * length, stop=stop)
        for length, stop in ((1, "end"), (3, "length"), (2, "end"), (2, "end"))
    ]
    found = summary(completions, [0.0, 1.0, 0.5, 0.5], torch.tensor([1.0, 3.0, 2.0, 2.0]), 2)
    assert found == {
        "reward": 2.0,
        "reward_std": pytest.approx(2**0.5 / 2),
        "frac_reward_zero_std": 0.5,
        "objective/scores": 0.5,
        "entropy": 1.0,
        "completions/mean_length": 2.0,
        "completions/clipped_ratio": 0.25,
        "num_tokens": 8.0,
    }
    assert distinct_2(["a b c", "a b"]) == pytest.approx(2 / 3)
    assert distinct_2(["a", ""]) == 0.0


def test_prompt_column() -> None:
    assert prompt_column("text") == "text"
    assert json.loads(prompt_column(CHAT)) == CHAT
    assert "ü" in prompt_column([{"role": "user", "content": "ü"}])


def test_the_budget_ends_training_where_estimate_or_measure_reaches_it() -> None:
    kl = [d**2 for d in (0.1, 0.2, 0.2, 0.9, 1.1, 1.1)]
    spent = diary(kl[:6], max_distance=1.0, distance_step=9.0)
    assert spent.measured == [6] and spent.is_done  # the median of three is 1.1
    far = diary(kl[:5], max_distance=1.0, distance_step=9.0)
    assert far.measured == [] and not far.is_done
    measured = diary([], max_distance=1.0, distance_step=0.5)
    measured.distance = 1.2
    for update in (1, 2, 3):
        measured.after_update(update, {"kl": 0.64})
    assert measured.measured == [1] and measured.is_done
    again = diary([], max_distance=1.0)
    again.load(json.loads(json.dumps(measured.state())))
    assert again.is_done


def test_training_stops_at_the_budget_and_stays_stopped(task: Path, tmp_path: Path) -> None:
    config = settings(
        task,
        output_dir=str(tmp_path / "run"),
        num_updates=60,
        kl=Kl(max_distance=0.5),
        checkpoints=Checkpointing(distance_step=9.0, num_eval_prompts=4),
    )
    folder = rl(config)
    lines = read_jsonl(folder / "checkpoints.jsonl")
    last = lines[-1]["update"]
    assert [line["update"] for line in lines] == [0, last] and last < 60
    assert 0.3 < lines[-1]["distance"] < 1.0
    shutil.rmtree(folder / "model")  # killed before it shipped
    rl(config)
    assert len(read_jsonl(folder / "metrics.jsonl")) == last
    assert load_policy(folder / "model").config.hidden_size == 32


def test_beta_follows_kl_towards_its_target(task: Path, tmp_path: Path) -> None:
    config = settings(
        task, output_dir=str(tmp_path / "run"), num_updates=6, kl=Kl(beta=0.5, kl_target=1e-3)
    )
    metrics = read_jsonl(rl(config) / "metrics.jsonl")
    expected = 0.5
    for row in metrics:
        assert row["beta"] == pytest.approx(expected)
        expected *= 1 + 0.1 * min(max(row["kl"] / 1e-3 - 1, -0.2), 0.2)
    assert expected != pytest.approx(0.5, rel=1e-4)
    rows = read_table(tmp_path / "run/completions/completions_00004.parquet")
    charged = np.mean(np.array(rows["score"]) - np.array(rows["reward"]))
    assert charged == pytest.approx(metrics[3]["beta"] * metrics[3]["kl"], abs=1e-4)


def test_exact_kl_in_the_reward_is_what_the_metric_says(task: Path, tmp_path: Path) -> None:
    config = settings(
        task,
        output_dir=str(tmp_path / "run"),
        num_updates=5,
        kl=Kl(beta=0.2, kl_estimator="exact"),
    )
    metrics = read_jsonl(rl(config) / "metrics.jsonl")
    assert metrics[-1]["kl"] > metrics[0]["kl"] >= 0
    rows = read_table(tmp_path / "run/completions/completions_00005.parquet")
    charged = np.array(rows["score"]) - np.array(rows["reward"])
    assert charged.min() >= -1e-6  # an exact KL is never negative, a k1 is
    assert charged.mean() == pytest.approx(0.2 * metrics[-1]["kl"], abs=1e-5)


def test_a_critic_learns_and_has_its_own_rate(task: Path, tmp_path: Path) -> None:
    algorithm = Ppo(num_iterations=2, num_mini_batches=2, critic_learning_rate=2e-2)
    config = settings(
        task,
        output_dir=str(tmp_path / "run"),
        num_updates=40,
        algorithm=algorithm,
        optimization=Optimization(learning_rate=1e-5, lr_scheduler_type="constant"),
    )
    metrics = read_jsonl(rl(config) / "metrics.jsonl")
    assert ["reward" in row for row in metrics[:8]] == [True, False, False, False] * 2
    errors = [row["loss/value_avg"] for row in metrics]
    assert np.mean(errors[-8:]) < 0.7 * np.mean(errors[:4])
    assert metrics[0]["critic_grad_norm"] > 0
    config = settings(task, algorithm=Ppo(critic_model_name_or_path=str(tmp_path / "no")))
    with pytest.raises(BadInput, match="no does not exist"):
        rl(replace(config, output_dir=str(tmp_path / "other")))
