"""prime-rl (559b447): trainer.loss."""

from __future__ import annotations

from collections.abc import Iterable

from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.applied.keys import Methods, keys_of, method_of


def methods(entries: Iterable[Entry]) -> Methods:
    """Its one loss; kl_tau penalises besides and is no coefficient on A."""
    keys = keys_of(entries, "trainer.loss.")
    tau = keys.get("kl_tau", 1e-3)
    if keys.get("type", "default") == "ipo":
        return (method_of("prime_rl", "ipo", threshold=keys.get("ipo_threshold", 0.1), kl_tau=tau),)
    low, high = keys.get("dppo_mask_low", 0.2), keys.get("dppo_mask_high", 0.2)
    return (method_of("prime_rl", "prime_dppo", mask_low=low, mask_high=high, kl_tau=tau),)
