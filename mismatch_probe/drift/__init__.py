"""Drift as a file: measured once, injected into a simulated rollout where there is no engine."""

from mismatch_probe.drift.injection import Injected
from mismatch_probe.drift.profile import DriftProfile
from mismatch_probe.drift.reading import DriftReading, inside, read_drift

__all__ = ["DriftProfile", "DriftReading", "Injected", "inside", "read_drift"]
