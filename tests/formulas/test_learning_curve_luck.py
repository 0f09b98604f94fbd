"""How much luck in training the interval of a learning curve leaves open, against all signs enumerated."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from crestline.formulas.learning_curve import learning_curve


def test_residuals_are_inflated_for_the_three_numbers_that_were_fitted() -> None:
    """One test group, so that nothing but luck is left: slopes under every choice of signs of inflated residuals."""
    counts = 100 * 2.0 ** np.arange(8)
    errors = 0.45 - 0.03 * np.arange(8) + np.random.default_rng(0).normal(0, 0.01, 8)
    found = learning_curve(counts, errors[:, None], num_more=100, num_resamples=3000)
    doublings = np.log2(counts) - np.log2(counts).mean()
    slope = float(errors @ doublings / (doublings @ doublings))
    residuals = errors - errors.mean() - slope * doublings
    signs = np.array(list(product([-1.0, 1.0], repeat=8)))
    lucky = slope + signs @ (residuals * doublings) / (doublings @ doublings) * np.sqrt(8 / 5)
    low, high = np.quantile(lucky, [0.025, 0.975])
    assert found.per_doubling[0] == pytest.approx(slope)
    assert found.per_doubling[2] - found.per_doubling[1] == pytest.approx(high - low, rel=0.06)
