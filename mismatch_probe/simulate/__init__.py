"""What corrections would do with a measured drift: mean weight, effective size, what is lost."""

from mismatch_probe.simulate.respond import simulate_methods
from mismatch_probe.simulate.response import MethodResponse

__all__ = ["MethodResponse", "simulate_methods"]
