"""Is the LM head computed in bfloat16? MP109, a fingerprint rather than a fault."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.stats.divergences import log_complement
from mismatch_probe.stats.layout import FloatArray
from mismatch_probe.stats.validity.check import Check, not_run

SPACINGS = (0.0625, 0.125, 0.25)
"""Distance of neighbouring bfloat16 numbers in [8, 16), [16, 32) and [32, 64), where logits lie."""
CONCENTRATION_BAR = 0.08
MIN_TOKENS = 200
BINS_PER_SPACING = 16
SPAN = 4


def round_to_bfloat16(values: npt.ArrayLike) -> FloatArray:
    """Nearest bfloat16, ties to even, as float64; elementwise, finite numbers in the range of float32."""
    bits = _float32_to_odd(np.asarray(values, dtype=np.float64)).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).astype(np.float64)


def _float32_to_odd(values: FloatArray) -> npt.NDArray[np.float32]:
    # Rounding twice to nearest can go the wrong way; through a float32 rounded to odd it cannot (Boldo and
    # Melquiond 2008).
    near = values.astype(np.float32)
    inexact = near.astype(np.float64) != values
    toward_zero = np.where(
        np.abs(near.astype(np.float64)) > np.abs(values), np.nextafter(near, np.float32(0)), near
    )
    bits = toward_zero.astype(np.float32).view(np.uint32)
    return np.where(inexact, bits | np.uint32(1), bits).view(np.float32)


def bfloat16_spacing(values: npt.ArrayLike) -> FloatArray:
    """Distance to the next bfloat16 of larger size, 2^(floor(log2 |x|) - 7); elementwise, normal numbers."""
    array = np.abs(np.asarray(values, dtype=np.float64))
    exponent = np.frexp(array)[1] - 1
    return np.asarray(np.ldexp(1.0, exponent - 7), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class HeadLattice:
    """Logit displacements in units of the bfloat16 spacing that fits best.

    Attributes:
        spacing: The unit, nats.
        concentration: Mean of cos(2 pi displacement / spacing) over tokens moved by at least half a unit: 1
            on the lattice, 0 off it.
        num_tokens: Those tokens.
        edges: Of the histogram, in units.
        counts: Tokens between the edges.
    """

    spacing: float
    concentration: float
    num_tokens: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]


def head_lattice(train_logprobs: FloatArray, rollout_logprobs: FloatArray) -> HeadLattice | None:
    """Looks for the lattice that bfloat16 logits leave in logit p - logit q.

    Returns:
        The spacing with the highest concentration, or None where fewer than 200 tokens moved by half a unit
        of any.
    """
    p, q = np.minimum(train_logprobs, 0.0), np.minimum(rollout_logprobs, 0.0)
    with np.errstate(invalid="ignore"):
        displacement = (p - log_complement(p)) - (q - log_complement(q))
    displacement = displacement[np.isfinite(displacement)]
    best: tuple[float, float, int] | None = None
    for spacing in SPACINGS:
        moved = displacement[np.abs(displacement) >= 0.5 * spacing] / spacing
        if moved.size >= MIN_TOKENS:
            concentration = float(np.cos(2.0 * math.pi * moved).mean())
            if best is None or concentration > best[1]:
                best = (spacing, concentration, int(moved.size))
    if best is None:
        return None
    spacing, concentration, count = best
    edges = (np.arange(-SPAN * BINS_PER_SPACING, SPAN * BINS_PER_SPACING + 2) - 0.5) / BINS_PER_SPACING
    counts = np.histogram(displacement / spacing, bins=edges)[0]
    return HeadLattice(
        spacing, concentration, count, tuple(float(e) for e in edges), tuple(int(c) for c in counts)
    )


def check_head_lattice(train_logprobs: FloatArray, rollout_logprobs: FloatArray) -> Check:
    """MP109: displacements are off the bfloat16 lattice; on it, the LM head should be float32."""
    name = "logits finer than bfloat16"
    found = head_lattice(train_logprobs, rollout_logprobs)
    if found is None:
        return not_run(
            "MP109", name, f"fewer than {MIN_TOKENS} tokens moved by half a bfloat16 step of a logit"
        )
    noise = 5.0 * math.sqrt(0.5 / found.num_tokens)
    on_lattice = found.concentration > max(CONCENTRATION_BAR, noise)
    detail = (
        f"concentration {found.concentration:.2f} on multiples of {found.spacing:g}"
        f" over {found.num_tokens} tokens"
    )
    bar = max(CONCENTRATION_BAR, noise)
    return Check("MP109", name, "fail" if on_lattice else "pass", found.concentration, bar, detail)
