"""Curves of preference against distance: the closed forms, and a fit that survives a cliff.

Distance is d = sqrt(KL(policy‖reference)), KL in nats. An advantage is a difference of mean
utility from the reference in units of the utility's standard deviation. Knows nothing of torch,
files or checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_ndtr, ndtr

Array = NDArray[np.float64]


# ---------------------------------------------------------------- link


def win_rate(advantage: ArrayLike, flip: float = 0.0) -> Array:
    """Probability of being preferred to the reference: 1/2 + (1 − 2e)(Φ(R/√2) − 1/2).

    advantage: R, any shape, in standard deviations of one completion's utility.
    flip: e in [0, 1/2], the probability that an answer is turned round.
    Returns probabilities of the same shape. Monotone in R, so the argmax does not depend on e.

    Source: Thurstone (1927), case V, with symmetric label noise.

    >>> [round(float(p), 3) for p in win_rate([0.0, 1.0])], round(float(win_rate(1.0, 0.25)), 3)
    ([0.5, 0.76], 0.63)
    """
    centred = ndtr(np.asarray(advantage, dtype=np.float64) / np.sqrt(2.0)) - 0.5
    return np.asarray(0.5 + (1.0 - 2.0 * flip) * centred)


# ---------------------------------------------------------------- closed forms


def gao(distance: ArrayLike, alpha: float, beta: float) -> Array:
    """Gold advantage under reinforcement learning: R(d) = d(α − β ln d), and 0 at d = 0.

    distance: any shape, ≥ 0, √nats. alpha, beta: standard deviations per √nat.
    Source: Gao, Schulman, Hilton (2022), arXiv 2210.10760, eq. 2.

    >>> round(float(gao(2.0, 0.35, 0.15)), 4)
    0.4921
    """
    d = np.asarray(distance, dtype=np.float64)
    return np.asarray(d * (alpha - beta * np.log(np.where(d > 0, d, 1.0))))


def gao_peak(alpha: float, beta: float) -> tuple[float, float]:
    """Where Gao's form peaks and how high: d* = exp(α/β − 1), R* = β d*.

    beta: > 0, or there is no peak (ValueError).
    Returns (distance in √nats, advantage in standard deviations).
    Source: the zero of R'(d) = α − β − β ln d.

    >>> d, r = gao_peak(0.35, 0.15)
    >>> round(d, 3), round(r, 3)
    (3.794, 0.569)
    """
    if not beta > 0:
        raise ValueError(f"the form has a peak only if beta > 0, not {beta}")
    d = exp(alpha / beta - 1.0)
    return d, beta * d


def saturating(distance: ArrayLike, ceiling: float, rate: float) -> Array:
    """The healthy alternative: R∞(1 − e^{−kd}), which rises for ever towards its ceiling.

    distance: any shape, ≥ 0, √nats. ceiling: R∞, standard deviations. rate: k per √nat.

    >>> round(float(saturating(1.0, 1.0, 1.0)), 4)
    0.6321
    """
    d = np.asarray(distance, dtype=np.float64)
    return np.asarray(ceiling * -np.expm1(-rate * d))


def fit_gao(
    distances: ArrayLike, advantages: ArrayLike, weights: ArrayLike | None = None
) -> tuple[float, float]:
    """Least-squares (alpha, beta) of Gao's form.

    distances, advantages: (S,), √nats and standard deviations. weights: (S,) ≥ 0, the inverse
    variances; equal by default. With fewer than two distinct distances the smallest-norm answer.
    Raises: ValueError on NaN or unequal lengths.
    Source: Gao et al. (2022), eq. 2; linear in α and β, so one solve.

    >>> d = np.array([1.0, 2.0, 4.0])
    >>> [round(x, 6) for x in fit_gao(d, gao(d, 0.35, 0.15))]
    [0.35, 0.15]
    """
    d, r, w = _triple(distances, advantages, 1.0 if weights is None else weights)
    root = np.sqrt(w)
    columns = np.stack([gao(d, 1.0, 0.0), gao(d, 0.0, 1.0)], axis=1)
    answer = np.linalg.lstsq(columns * root[:, None], r * root, rcond=None)[0]
    return float(answer[0]), float(answer[1])


def fit_gao_duels(
    distances: ArrayLike, wins: ArrayLike, counts: ArrayLike, flip: float = 0.0
) -> tuple[float, float]:
    """Most likely (alpha, beta) of Gao's form given duels against the reference.

    distances: (S,) √nats. wins: (S,), 0 ≤ wins ≤ counts, a tie is half a win. counts: (S,) duels.
    flip: known flip rate in [0, 1/2); a wrong one rescales α and β together and so leaves the
    peak nearly where it is. A ridge of 0.01 keeps separable data finite.
    Raises: ValueError on NaN, unequal lengths or counts out of range.
    Source: Gao et al. (2022), eq. 2, with the Thurstone link above.

    >>> d = np.array([1.0, 2.0, 4.0, 6.0])
    >>> k = 1e6 * win_rate(gao(d, 0.35, 0.15), 0.25)
    >>> [round(x, 3) for x in fit_gao_duels(d, k, np.full(4, 1e6), flip=0.25)]
    [0.35, 0.15]
    """
    d, k, n = _duels(distances, wins, counts)

    def loss(theta: Array) -> float:
        return _negative_log_likelihood(gao(d, theta[0], theta[1]), k, n, flip) + 0.005 * float(
            theta @ theta
        )

    found = minimize(loss, np.array([0.1, 0.05]), method="Nelder-Mead", options=_TIGHT)
    return float(found.x[0]), float(found.x[1])


def fit_saturating_duels(
    distances: ArrayLike, wins: ArrayLike, counts: ArrayLike, flip: float = 0.0
) -> tuple[float, float]:
    """Most likely (ceiling, rate) of the saturating form given duels against the reference.

    Arguments and errors as in `fit_gao_duels`. The rate is kept positive.

    >>> d = np.array([1.0, 2.0, 4.0, 6.0])
    >>> k = 1e6 * win_rate(saturating(d, 0.8, 0.7))
    >>> [round(x, 2) for x in fit_saturating_duels(d, k, np.full(4, 1e6))]
    [0.8, 0.7]
    """
    d, k, n = _duels(distances, wins, counts)

    def loss(theta: Array) -> float:
        curve = saturating(d, theta[0], exp(min(theta[1], 20.0)))
        return _negative_log_likelihood(curve, k, n, flip) + 0.005 * float(theta @ theta)

    found = minimize(loss, np.array([0.5, 0.0]), method="Nelder-Mead", options=_TIGHT)
    return float(found.x[0]), exp(float(found.x[1]))


_TIGHT = {"xatol": 1e-7, "fatol": 1e-7, "maxiter": 4000}


def _negative_log_likelihood(advantage: Array, wins: Array, counts: Array, flip: float) -> float:
    if flip == 0.0:
        z = advantage / np.sqrt(2.0)
        return -float(wins @ log_ndtr(z) + (counts - wins) @ log_ndtr(-z))
    p = win_rate(advantage, flip)
    return -float(wins @ np.log(p) + (counts - wins) @ np.log1p(-p))


# ---------------------------------------------------------------- shape only


def unimodal(values: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Weighted least-squares fit that rises to one mode and then falls.

    values: (S,) in order of distance. weights: (S,) > 0, equal by default.
    Returns (S,). Each side is an isotonic regression; the mode is the best of all splits.
    Raises: ValueError on NaN or unequal lengths.
    Source: Stout (2008), Unimodal regression via prefix isotonic regression, CSDA 53.

    >>> unimodal([1.0, 3.0, 2.0, 4.0, 0.0]).tolist()
    [1.0, 2.5, 2.5, 4.0, 0.0]
    """
    _, y, w = _triple(values, values, 1.0 if weights is None else weights)
    best, best_loss = y, np.inf
    for split in range(len(y) + 1):
        left = isotonic(y[:split], w[:split])
        right = isotonic(y[split:][::-1], w[split:][::-1])[::-1]
        fitted = np.concatenate([left, right])
        loss = float(w @ (y - fitted) ** 2)
        if loss < best_loss - 1e-12:
            best, best_loss = fitted, loss
    return best


def isotonic(values: Array, weights: Array) -> Array:
    """Weighted least-squares non-decreasing fit by pooling adjacent violators.

    values, weights: (S,), weights > 0. Returns (S,).
    Source: Barlow et al. (1972), Statistical Inference under Order Restrictions, ch. 1.

    >>> isotonic(np.array([3.0, 1.0, 2.0]), np.ones(3)).tolist()
    [2.0, 2.0, 2.0]
    """
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, mass, size = value, weight, 1
        while blocks and blocks[-1][0] > mean:
            m, w, s = blocks.pop()
            mean, mass, size = (m * w + mean * mass) / (w + mass), w + mass, s + size
        blocks.append((mean, mass, size))
    return np.array([m for m, _, size in blocks for _ in range(size)], dtype=np.float64)


# ---------------------------------------------------------------- the stacked fit


@dataclass(frozen=True)
class StackedFit:
    """Posterior of the curve at the S checkpoints: a mixture of M Gaussians.

    Values are log odds of winning against the reference, log(p/(1 − p)).
    weights_M: sum to 1. means_MS, covariances_MSS: of each member.
    """

    names: tuple[str, ...]
    weights_M: Array
    means_MS: Array
    covariances_MSS: Array

    def mean(self) -> Array:
        """(S,) posterior mean of the log odds."""
        return np.asarray(self.weights_M @ self.means_MS)

    def family_weights(self) -> dict[str, float]:
        """Posterior weight of each family of shapes; they sum to 1."""
        total: dict[str, float] = {}
        for name, weight in zip(self.names, self.weights_M.tolist(), strict=True):
            total[name] = total.get(name, 0.0) + weight
        return total

    def sample(self, num_samples: int, rng: np.random.Generator) -> Array:
        """(num_samples, S) curves of log odds drawn from the posterior."""
        chosen = rng.choice(len(self.weights_M), size=num_samples, p=self.weights_M)
        num_points = self.means_MS.shape[1]
        noise = rng.standard_normal((num_samples, num_points))
        curves = np.empty((num_samples, num_points))
        for m in np.unique(chosen):
            rows = chosen == m
            scale, axes = np.linalg.eigh(self.covariances_MSS[m])
            root = axes * np.sqrt(np.maximum(scale, 0.0))
            curves[rows] = self.means_MS[m] + noise[rows] @ root.T
        return curves


def fit_stacked(distances: ArrayLike, wins: ArrayLike, counts: ArrayLike) -> StackedFit:
    """Average of many curve shapes, weighted by how well each predicts the duels.

    distances: (S,) ≥ 0, √nats, of checkpoints in any order; equal ones are allowed.
    wins, counts: (S,) as in `fit_gao_duels`; a count of 0 is a checkpoint without duels.
    Every member is linear in its coefficients with a Gaussian prior, passes through 0 at d = 0
    (the reference ties with itself) and has a rough remainder, so that no shape is imposed:
    Gao's form, the saturating form, and the saturating form that falls off a cliff somewhere.
    Steepness, place of the cliff and size of the remainder are the grid of members. The duels
    are binomial in the log odds, and each posterior is Laplace's approximation to it.
    The flip rate only compresses the log odds, so the argmax does not need it.
    Raises: ValueError on NaN, unequal lengths or counts out of range.
    Source: Rasmussen & Williams (2006), algorithms 3.1 and 5.1 (Laplace evidence), sec. 2.7
    (explicit basis functions); MacKay (1992) for averaging by evidence.

    >>> fit = fit_stacked([1.0, 2.0, 3.0], [60, 75, 20], [100, 100, 100])
    >>> int(fit.mean().argmax()), bool(fit.mean()[2] < 0)
    (1, True)
    """
    d, k, n = _duels(distances, wins, counts)
    span = float(d.max()) if d.size else 0.0
    names, prior_weights, priors = _members(d / span if span > 0 else d)
    means, covariances, evidence = _laplace(priors, k, n)
    logs = np.log(prior_weights) + evidence
    weights = np.exp(logs - logs.max())
    return StackedFit(names, weights / weights.sum(), means, covariances)


def _members(x: Array) -> tuple[tuple[str, ...], Array, Array]:
    """Family names, prior weights and prior covariances (M, S, S); x is distance / largest."""
    slopes = np.stack([gao(x, 2.0, 0.0), gao(x, 0.0, 2.0)])
    shapes: list[tuple[str, Array]] = [("gao", slopes)]
    for rate in (0.5, 2.0, 5.0, 12.0):
        rise = saturating(x, 1.0 / -np.expm1(-rate), rate)
        shapes.append(("saturating", rise[None]))
        for place in np.linspace(0.1, 1.0, 10):
            for width in (0.03, 0.1):
                fall = expit((x - place) / width) - expit(-place / width)
                shapes.append(("cliff", np.stack([rise, 1.5 * fall])))
    remainders = [0.05**2 * _rough(x, 0.2), 0.3**2 * _rough(x, 0.2), 0.3**2 * _rough(x, 0.6)]
    sizes = {name: sum(s == name for s, _ in shapes) for name, _ in shapes}
    names, weights, priors = [], [], []
    for name, basis in shapes:
        for remainder in remainders:
            names.append(name)
            weights.append(1.0 / (sizes[name] * len(remainders)))
            priors.append(basis.T @ basis + remainder)
    w = np.array(weights)
    return tuple(names), w / w.sum(), np.stack(priors)


def _rough(x: Array, length: float) -> Array:
    """Matérn-3/2 covariance of a curve pinned to 0 at x = 0, unit variance far from it."""

    def kernel(gap: Array) -> Array:
        u = np.sqrt(3.0) * gap / length
        return np.asarray((1.0 + u) * np.exp(-u))

    to_zero = kernel(x)
    return kernel(np.abs(x[:, None] - x[None, :])) - to_zero[:, None] * to_zero[None, :]


def _laplace(priors_MSS: Array, wins: Array, counts: Array) -> tuple[Array, Array, Array]:
    """Posterior means (M, S), covariances (M, S, S) and log evidences (M,)."""
    f = np.zeros(priors_MSS.shape[:2])
    eye = np.eye(priors_MSS.shape[1])
    for _ in range(12):
        p = expit(f)
        root = np.sqrt(counts * p * (1.0 - p))
        inner = eye + root[:, :, None] * priors_MSS * root[:, None, :]
        b = root**2 * f + wins - counts * p
        prior_b = np.einsum("mst,mt->ms", priors_MSS, b)
        a = b - root * np.linalg.solve(inner, (root * prior_b)[:, :, None])[:, :, 0]
        step = np.einsum("mst,mt->ms", priors_MSS, a) - f
        f = f + step
        if float(np.abs(step).max(initial=0.0)) < 1e-6:
            break
    log_likelihood = (wins * f - counts * np.logaddexp(0.0, f)).sum(axis=1)
    half_log_det = 0.5 * np.linalg.slogdet(inner)[1]
    evidence = log_likelihood - 0.5 * (a * f).sum(axis=1) - half_log_det
    left = root[:, :, None] * priors_MSS
    covariances = priors_MSS - np.einsum("mts,mtu->msu", left, np.linalg.solve(inner, left))
    return f, covariances, evidence


# ---------------------------------------------------------------- checks


def _triple(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> tuple[Array, Array, Array]:
    """Three (S,) float64 arrays, the last broadcast; no NaN."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"need two lists of one length, not shapes {x.shape} and {y.shape}")
    z = np.broadcast_to(np.asarray(c, dtype=np.float64), x.shape)
    for values in (x, y, z):
        if not np.isfinite(values).all():
            raise ValueError("a value is NaN or infinite")
    return x, y, z


def _duels(distances: ArrayLike, wins: ArrayLike, counts: ArrayLike) -> tuple[Array, Array, Array]:
    d, k, n = _triple(distances, wins, counts)
    if (d < 0).any():
        raise ValueError("a distance is negative")
    if (k < 0).any() or (k > n).any():
        raise ValueError("need 0 <= wins <= counts at every checkpoint")
    return d, k, n
