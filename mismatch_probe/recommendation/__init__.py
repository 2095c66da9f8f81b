"""From what was measured to what to do: engine fixes, the correction with its hyperparameters, what to watch."""

from mismatch_probe.recommendation.goals import DEFAULT_GOAL, GOALS
from mismatch_probe.recommendation.recommend import recommend

__all__ = ["DEFAULT_GOAL", "GOALS", "recommend"]
