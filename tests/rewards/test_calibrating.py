import numpy as np
import pytest
import torch

from crestline.formulas.calibration import fit_temperature
from crestline.formulas.ensemble import aggregated
from crestline.models.load import save_model
from crestline.models.reward import Calibration, RewardEnsemble, RewardModel, new_reward_model
from crestline.models.tokenizer import train_tokenizer
from crestline.rewards.calibrating import calibrate, fitted
from crestline.rewards.pairs import pairs_of
from crestline.types import BadInput, Ranking

WORDS = ["cat", "dog", "hen", "mat", "log", "road", "sun", "fog"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, tiny_llama):
    torch.set_num_threads(1)
    tokenizer = train_tokenizer([" ".join(WORDS)] * 5, 300)
    folder = tmp_path_factory.mktemp("backbone")
    model = tiny_llama(tokenizer, 32)
    save_model(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def rankings() -> list[Ranking]:
    random = np.random.default_rng(0)
    found = []
    for number in range(60):
        texts = tuple(" ".join(random.choice(WORDS, 3)) for _ in range(3))
        ranks = (0, 1, 2 if number % 3 else None)
        found.append(Ranking(prompt=f"prompt {number} ", completions=texts, ranks=ranks))
    return found


def scaled(backbone, seed: int, factor: float, **changes) -> RewardModel:
    reward_model = new_reward_model(backbone, seed=seed, max_length=32, **changes)
    with torch.no_grad():
        reward_model.model.score.weight *= factor
    return reward_model


def differences(scores_N: np.ndarray, rankings: list[Ranking]) -> tuple[np.ndarray, np.ndarray]:
    """Better minus worse of every pair that was ranked, and each pair's weight: a ranking counts once."""
    found, weights = [], []
    for number, ranking in enumerate(rankings):
        ranked = [k for k, rank in enumerate(ranking.ranks) if rank is not None]
        pairs = [(i, j) for i in ranked for j in ranked if i < j]
        found += [scores_N[3 * number + i] - scores_N[3 * number + j] for i, j in pairs]
        weights += [1 / len(pairs)] * len(pairs)
    return np.array(found), np.array(weights)


def columns(rankings: list[Ranking]) -> tuple[list[str], list[str]]:
    prompts = [str(ranking.prompt) for ranking in rankings for _ in ranking.completions]
    return prompts, [text for ranking in rankings for text in ranking.completions]


def test_a_single_model_gets_mean_and_temperature_and_keeps_its_scores(backbone, rankings) -> None:
    reward_model = scaled(backbone, 1, 30.0)
    before = reward_model.score(*columns(rankings))
    scores_N = calibrate(reward_model, rankings)
    np.testing.assert_allclose(scores_N, before)
    assert reward_model.calibration.mean == pytest.approx(np.mean(before))
    expected = fit_temperature(*differences(scores_N, rankings))
    assert reward_model.calibration.temperature == pytest.approx(expected, rel=1e-4)


def test_typical_answers_decide_where_the_middle_is(backbone, rankings) -> None:
    reward_model = scaled(backbone, 1, 30.0)
    typical = [("prompt 3 ", "cat cat"), ("prompt 9 ", "fog")]
    scores_N = calibrate(reward_model, rankings, typical=typical)
    assert len(scores_N) == 180
    expected = np.mean(reward_model.score(*zip(*typical, strict=True)))
    assert reward_model.calibration.mean == pytest.approx(expected)


@pytest.mark.parametrize("how", ["mean", "min", "uwo"])
def test_heads_come_on_one_scale(backbone, rankings, how: str) -> None:
    reward_model = scaled(backbone, 1, 1.0, num_heads=3, aggregate=how, uwo_coefficient=0.4)
    with torch.no_grad():
        reward_model.model.score.weight *= torch.tensor([[1.0], [30.0], [200.0]])
    raw_NM = reward_model.member_scores(*columns(rankings))
    scores_N = calibrate(reward_model, rankings)
    expected_NM = np.stack(
        [
            (raw_N - raw_N.mean()) / fit_temperature(*differences(raw_N, rankings))
            for raw_N in raw_NM.T
        ],
        axis=1,
    )
    members_NM = reward_model.member_scores(*columns(rankings))
    np.testing.assert_allclose(members_NM, expected_NM, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(members_NM.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(scores_N, reward_model.score(*columns(rankings)), atol=1e-4)
    centred_N = scores_N - scores_N.mean()
    joined_N = aggregated(members_NM, how, 0.4)
    np.testing.assert_allclose(centred_N, joined_N - joined_N.mean(), atol=1e-4)
    assert reward_model.calibration.score(scores_N.mean()) == pytest.approx(0.5, abs=1e-6)


def test_one_head_that_is_always_right_does_not_rule_the_others() -> None:
    """15 rankings; the first head gets all of them right, the others 14."""
    pairs = pairs_of(
        [Ranking(prompt=f"{n}", completions=("a", "b"), ranks=(0, 1)) for n in range(15)]
    )
    gaps_PM = np.random.default_rng(1).uniform(0.5, 1.5, (15, 4))
    gaps_PM[[1, 2, 3], [1, 2, 3]] = -0.3
    scores_NM = np.stack([gaps_PM, np.zeros_like(gaps_PM)], axis=1).reshape(30, 4)
    weights_M = np.array([1 / fitted(scores_N, pairs, 30).temperature for scores_N in scores_NM.T])
    assert (weights_M / weights_M.sum()).max() < 0.5


def test_an_ensemble_calibrates_its_members_and_then_itself(backbone, rankings) -> None:
    members = [scaled(backbone, 1, 30.0), scaled(backbone, 2, 400.0, num_heads=2)]
    ensemble = RewardEnsemble(members, aggregate="min")
    scores_N = calibrate(ensemble, rankings)
    np.testing.assert_allclose(scores_N, ensemble.score(*columns(rankings)), atol=1e-4)
    for member in members:
        alone_N = np.array(member.score(*columns(rankings)))
        assert member.calibration.mean == pytest.approx(alone_N.mean(), abs=1e-4)
        expected = fit_temperature(*differences(alone_N, rankings))
        assert member.calibration.temperature == pytest.approx(expected, rel=1e-3)
    assert ensemble.calibration.mean == pytest.approx(scores_N.mean()) and scores_N.mean() < 0


def test_what_says_nothing_and_what_is_broken_are_refused(backbone, rankings) -> None:
    tied = [Ranking(prompt="a", completions=("b", "c"), ranks=(0, 0))]
    with pytest.raises(BadInput, match="no two completions of which one is better"):
        calibrate(scaled(backbone, 1, 1.0), tied)
    broken = scaled(backbone, 1, float("nan"))
    with pytest.raises(BadInput, match="scores that are no numbers"):
        calibrate(broken, rankings)
    assert broken.calibration == Calibration()
