"""Confidence intervals in closed form, so that no table of results is printed without its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Interval(NamedTuple):
    """An estimate with its confidence interval.

    Attributes:
        value: The point estimate (nan without data).
        low: Lower end.
        high: Upper end.
        observations: How many observations it rests on.

    Example:
        >>> Interval(0.5, 0.4, 0.6, 100).low
        0.4
    """

    value: float
    low: float
    high: float
    observations: int


def shown_interval(interval: Sequence[float], scale: float = 100, digits: int = 1, sign: str = "") -> str:
    """
    An estimate with its interval in brackets, as tables have it; a dash without data.

    Args:
        interval: Estimate, lower and upper end: an [`Interval`], or its first three numbers.
        scale: What they are multiplied with; 100 for percent and points.
        digits: Behind the point.
        sign: ``"+"`` for differences.

    Example:
        >>> shown_interval(Interval(0.5, 0.4, 0.625, 100)), shown_interval((0.02, -0.01, 0.05), digits=0, sign="+")
        ('50.0 [40.0, 62.5]', '+2 [-1, +5]')
    """
    if math.isnan(interval[0]):
        return "-"
    value, low, high = (f"{scale * part:{sign}.{digits}f}" for part in interval[:3])
    return f"{value} [{low}, {high}]"


_NOTHING = Interval(math.nan, math.nan, math.nan, 0)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; pass a share between 0 and 1, such as 0.95.")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _values(values: Any, name: str) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; pass one number an observation, shape (n,).")
    return array


def wilson_interval(successes: float, total: int, confidence: float = 0.95) -> Interval:
    """Estimate a rate with Wilson's score interval, which stays inside [0, 1] and is fair near its ends.

    Args:
        successes: How many of `total` succeeded.
        total: How many were tried; with 0 the result is nan.
        confidence: Coverage.

    Returns:
        The rate and its interval.

    Raises:
        ValueError: If `successes` is outside 0..`total` or `confidence` outside (0, 1).

    Example:
        >>> [round(x, 3) for x in wilson_interval(8, 10)[:3]]
        [0.8, 0.49, 0.943]
    """
    z = _quantile(confidence)
    if not 0 <= successes <= total:
        raise ValueError(f"successes is {successes} of total {total}; pass 0 <= successes <= total.")
    if total == 0:
        return _NOTHING
    rate, spread = successes / total, z * z / total
    centre = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(rate * (1 - rate) * spread + spread * spread / 4) / (1 + spread)
    # Rounding may leave an end 1e-17 beyond the rate it must enclose.
    return Interval(rate, max(0.0, min(centre - half, rate)), min(1.0, max(centre + half, rate)), int(total))


def mean_interval(values: Any, confidence: float = 0.95) -> Interval:
    """Estimate a mean with the normal interval (mean plus or minus z standard errors).

    Args:
        values: One number an observation, shape (n,). With n = 0 the result is nan, with n = 1 the interval infinite.
        confidence: Coverage.

    Returns:
        The mean and its interval.

    Raises:
        ValueError: If `values` is not one-dimensional or `confidence` is outside (0, 1).

    Example:
        >>> mean_interval([1.0, 1.0, 1.0])
        Interval(value=1.0, low=1.0, high=1.0, observations=3)
    """
    z = _quantile(confidence)
    array = _values(values, "values")
    if len(array) == 0:
        return _NOTHING
    mean = float(array.mean())
    half = z * float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else math.inf
    return Interval(mean, mean - half, mean + half, len(array))


def paired_difference_interval(a: Any, b: Any, confidence: float = 0.95) -> Interval:
    """Estimate the mean of ``a - b`` where both were measured on the same items.

    Pairing removes the items' own difficulty from the spread: the difference of two models on the same boards is far
    less noisy than two separate intervals suggest.

    Args:
        a: One number an item (booleans count as 0 and 1), shape (n,).
        b: The same items in the same order, shape (n,).
        confidence: Coverage.

    Returns:
        The mean difference and its interval.

    Raises:
        ValueError: If the lengths differ, an argument is not one-dimensional, or `confidence` is outside (0, 1).

    Example:
        >>> paired_difference_interval([True, True, False], [True, True, False]).value
        0.0
    """
    left, right = _values(a, "a"), _values(b, "b")
    if left.shape != right.shape:
        raise ValueError(f"a has {len(left)} items and b {len(right)}; pass the same items in the same order.")
    return mean_interval(left - right, confidence)


def paired_bootstrap(a: Any, b: Any, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95) -> Interval:
    """Estimate the mean of ``a - b`` on the same items by resampling the items (percentile bootstrap).

    It assumes nothing about the differences' shape, which [`paired_difference_interval`] takes to be near normal; for
    some hundred right and wrong answers the two agree to the third digit.

    Args:
        a: One number an item (booleans count as 0 and 1), shape (n,).
        b: The same items in the same order, shape (n,).
        seed: Of the resampling.
        resamples: How many resamples; their quantiles are the interval's ends.
        confidence: Coverage.

    Returns:
        The mean difference and its interval.

    Raises:
        ValueError: If the lengths differ, an argument is not one-dimensional, `resamples` is below 1 or `confidence`
            outside (0, 1).

    Example:
        >>> difference = paired_bootstrap([True] * 6 + [False] * 4, [True] * 3 + [False] * 7, seed=1)
        >>> round(difference.value, 1), difference.low >= 0
        (0.3, True)
    """
    _quantile(confidence)
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise ValueError(f"resamples is {resamples!r}; pass an integer of at least 1, such as 10000.")
    left, right = _values(a, "a"), _values(b, "b")
    if left.shape != right.shape:
        raise ValueError(f"a has {len(left)} items and b {len(right)}; pass the same items in the same order.")
    differences = left - right
    if len(differences) == 0:
        return _NOTHING
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [  # in parts: all indices at once would take a gigabyte for ten thousand items
            differences[generator.integers(len(differences), size=(part, len(differences)))].mean(axis=1)
            for part in [100] * (resamples // 100) + [resamples % 100]
            if part
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    value = float(differences.mean())
    return Interval(value, min(float(low), value), max(float(high), value), len(differences))
