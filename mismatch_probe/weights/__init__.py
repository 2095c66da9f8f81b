"""Importance-weight corrections: what each would do to a batch whose rollout and training policies disagree.

`get_method(name).coefficients(batch)` gives phi, the coefficient on `A * grad log pi(y_t)`, one per token;
`.loss(batch)` is the policy loss with exactly that gradient. Everything is worked out in log space; torch is
imported at first use.
"""

from mismatch_probe.weights.batch import Batch
from mismatch_probe.weights.describe import MethodDescription, Variant, describe_methods
from mismatch_probe.weights.method import GradientView, WeightMethod
from mismatch_probe.weights.presets import FRAMEWORKS, framework_methods, get_method_as_coded
from mismatch_probe.weights.registry import available_methods, get_method, register_method

__all__ = [
    "FRAMEWORKS",
    "Batch",
    "GradientView",
    "MethodDescription",
    "Variant",
    "WeightMethod",
    "available_methods",
    "describe_methods",
    "framework_methods",
    "get_method",
    "get_method_as_coded",
    "register_method",
]
