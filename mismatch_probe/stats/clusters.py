"""Standard errors of a mean when units of one prompt depend on each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.layout import FloatArray, cluster_table, finite_array


@dataclass(frozen=True, slots=True)
class ClusterError:
    """Standard errors of a mean over units.

    Attributes:
        mean: Mean over units.
        naive: Standard error that takes units for independent (n - 1); None for one unit.
        cr0: Cluster-robust sandwich, no correction for few clusters.
        cr1: `cr0` times sqrt(G / (G - 1)); None for one cluster.
        design_effect: (`cr1` / `naive`)^2, by which the clustering shrinks the sample; None where undefined.
        num_clusters: G.
        n: Units.
    """

    mean: float
    naive: float | None
    cr0: float
    cr1: float | None
    design_effect: float | None
    num_clusters: int
    n: int

    @property
    def effective_n(self) -> float:
        """Units over design effect, at most n; the number of clusters where there is no design effect."""
        if self.design_effect is None:
            return float(self.num_clusters)
        return self.n / max(self.design_effect, 1.0)


def cluster_standard_error(values: npt.ArrayLike, clusters: npt.ArrayLike) -> ClusterError:
    """Naive and cluster-robust standard errors of the mean (Liang and Zeger 1986, for a mean).

    Args:
        values: [units].
        clusters: [units] prompt of each unit.

    Raises:
        InconclusiveError: No units, or units that are not finite.
        ConfigError: The lengths differ.
    """
    array = finite_array(values, "values")
    if np.shape(clusters) != array.shape:
        raise ConfigError(f"{array.size} values and clusters of shape {np.shape(clusters)}")
    n, mean = int(array.size), float(array.mean())
    residual = array - mean
    by_cluster = cluster_table(clusters, residual)[:, 0]
    groups = int(by_cluster.size)
    cr0 = math.sqrt(float(by_cluster @ by_cluster)) / n
    cr1 = cr0 * math.sqrt(groups / (groups - 1)) if groups > 1 else None
    naive = math.sqrt(float(residual @ residual) / (n - 1) / n) if n > 1 else None
    effect = (cr1 / naive) ** 2 if cr1 is not None and naive else None
    return ClusterError(mean, naive, cr0, cr1, effect, groups, n)


def design_effect(values: npt.ArrayLike, clusters: npt.ArrayLike) -> float | None:
    """(SE clustered / SE naive)^2 of the mean, or None with one cluster or without any spread."""
    return cluster_standard_error(values, clusters).design_effect


def design_effect_from_table(table: FloatArray) -> float | None:
    """The design effect of the mean where only sums by prompt are left.

    Args:
        table: float64 [prompts, 3]: sum of the values, sum of their squares, number of units.

    Returns:
        None with one prompt, or where the values do not vary beyond rounding.
    """
    groups = int(table.shape[0])
    total, squares, n = (float(v) for v in table.sum(axis=0))
    spread = squares - total * total / n if n > 0 else 0.0
    if groups < 2 or n < 2 or spread <= 1e-12 * squares:
        return None
    residual = table[:, 0] - total / n * table[:, 2]
    clustered = float(residual @ residual) / n**2 * groups / (groups - 1)
    return clustered / (spread / (n - 1) / n)
