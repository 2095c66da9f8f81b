"""What corrections would do with a measured drift: mean weight, effective size, what is lost; and fits to it."""

from mismatch_probe.simulate.bias import BiasVariance, bias_variance
from mismatch_probe.simulate.extrapolate import (
    ExtrapolatedPoint,
    StalenessModel,
    extrapolate,
    measured_staleness,
)
from mismatch_probe.simulate.gaussian import GaussianResponse, gaussian_response
from mismatch_probe.simulate.respond import respond, respond_all, simulate_methods
from mismatch_probe.simulate.response import MethodResponse, Unavailable
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.simulate.sweep import SweepPoint, sweep
from mismatch_probe.simulate.tuning import ThresholdFit, VespoTuning, tune_method, tune_vespo

__all__ = [
    "BiasVariance",
    "ExtrapolatedPoint",
    "GaussianResponse",
    "MethodResponse",
    "Responses",
    "StalenessModel",
    "SweepPoint",
    "ThresholdFit",
    "Unavailable",
    "VespoTuning",
    "bias_variance",
    "extrapolate",
    "gaussian_response",
    "measured_staleness",
    "respond",
    "respond_all",
    "simulate_methods",
    "sweep",
    "tune_method",
    "tune_vespo",
]
