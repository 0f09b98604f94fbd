import numpy as np
import pytest

from crestline.formulas.ensemble import aggregated, spread

SCORES = [[1.0, 2.0, 6.0], [0.0, 0.0, 0.0], [-1.0, 1.0, 0.0]]


def test_by_hand() -> None:
    np.testing.assert_allclose(aggregated(SCORES, "mean"), [3, 0, 0])
    np.testing.assert_allclose(aggregated(SCORES, "min"), [1, 0, -1])
    # variances (4 + 1 + 9) / 3 and 2 / 3
    np.testing.assert_allclose(aggregated(SCORES, "uwo", 0.3), [3 - 0.3 * 14 / 3, 0, -0.2])
    np.testing.assert_allclose(spread(SCORES), [(14 / 3) ** 0.5, 0, (2 / 3) ** 0.5])


def test_one_member_is_itself_and_pessimism_only_lowers() -> None:
    random = np.random.default_rng(0).normal(size=(50, 4))
    for how in ("mean", "min", "uwo"):
        np.testing.assert_allclose(aggregated(random[:, :1], how, 3.0), random[:, 0])
        assert (aggregated(random, how, 0.5) <= aggregated(random, "mean") + 1e-12).all()
    np.testing.assert_allclose(aggregated(random, "uwo", 0.0), aggregated(random, "mean"))


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match="mean, min or uwo"):
        aggregated(SCORES, "median")  # type: ignore[arg-type]
