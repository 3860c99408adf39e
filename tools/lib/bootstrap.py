"""Whether two methods differ on the same queries: a paired bootstrap."""
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
AT_ONCE = 200       # resamples: bounds the memory


class Difference(NamedTuple):
    """Mean difference, the ends of its 95 % confidence interval, and the two-sided p-value of no difference."""

    mean: float
    low: float
    high: float
    p: float


def paired_bootstrap(differences, rng, resamples=RESAMPLES):
    """Resample queries with replacement (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993).

    The interval is that of percentiles. p is twice the smaller share of resamples whose mean is on the other side of
    0, or on it, (count + 1) / (resamples + 1), at most 1.

    Args: differences: (Q,) first minus second of each query; rng: numpy Generator; resamples: how many.
    Returns: `Difference`. Raises: ValueError: there is no query.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if not len(differences):
        raise ValueError("no query is left to compare")
    means = np.concatenate([differences[rng.integers(0, len(differences), (min(AT_ONCE, resamples - start),
                                                                          len(differences)))].mean(axis=1)
                            for start in range(0, resamples, AT_ONCE)])
    low, high = np.quantile(means, (0.025, 0.975))
    other_side = min((means <= 0).sum(), (means >= 0).sum())
    return Difference(float(differences.mean()), float(low), float(high),
                      min(1.0, 2 * float(other_side + 1) / (resamples + 1)))
