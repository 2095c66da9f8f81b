"""What a config would do to a run's own tokens, before anything is trained with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mismatch_probe.errors import ConfigError, MismatchProbeError
from mismatch_probe.simulate.cells import Cells
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.simulate.sums import ground_of, sum_weights
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.weights.method import GradientView
from mismatch_probe.weights.ratios import LOG_CEILING

if TYPE_CHECKING:
    import torch

    from mismatch_probe.weights import Batch, WeightMethod


@dataclass(frozen=True, slots=True)
class ConfigEffect:
    """What a framework's loss does to a run's tokens with a config; phi is the coefficient on A * grad log pi.

    Attributes:
        kept_fraction: Share of the tokens that count whose phi is above 0.
        mean_weight: Mean phi of these tokens.
        ess: Kish effective size, (sum phi)^2 / (n sum phi^2) over tokens.
        reads: Which ratio each factor of phi looks at.
        assumed_signs: Whether the run has no advantages, so that both signs were tried on every response.
        assumed_old: Whether the run has no pi_old, so that pi stands for it: the trainer has the rollout's weights.
    """

    kept_fraction: Estimate
    mean_weight: Estimate
    ess: Estimate
    reads: tuple[str, ...]
    assumed_signs: bool
    assumed_old: bool

    def sentence(self) -> str:
        """All of it in a sentence or two, for a comment."""
        said = (
            f"On this run it keeps {_in_words(self.kept_fraction, percent=True)} of tokens, mean weight "
            f"{_in_words(self.mean_weight)}, effective size {_in_words(self.ess)}."
        )
        assumed = []
        if self.assumed_old:
            assumed.append("pi_old = pi, as before a first update")
        if self.assumed_signs:
            assumed.append("the run has no advantages, so that both signs are tried on every response")
        return said if not assumed else f"{said} Assumed: {'; '.join(assumed)}."


@dataclass(frozen=True, slots=True)
class _Product(GradientView):
    """Factors of one loss as one method of tokens."""

    name: ClassVar[str] = "config"
    label: ClassVar[str] = "config"
    reads: ClassVar[str] = "product"

    factors: tuple[WeightMethod, ...]

    def coefficients(self, batch: Batch) -> torch.Tensor:
        """The product of the factors' phi, saturating as each of them does."""
        import math

        import torch

        ceiling = math.exp(LOG_CEILING)
        phi = torch.ones_like(batch.train_logprobs, dtype=torch.float64).masked_fill(~batch.mask, 0.0)
        for factor in self.factors:
            phi = (phi * factor.coefficients(batch)).clamp(-ceiling, ceiling)
        return phi


def expected_effect(
    applies: Sequence[WeightMethod], responses: Responses, *, resamples: int = 1000, seed: int = 0
) -> ConfigEffect:
    """What a config does to a run's tokens, at the run's own pi.

    A method that decides over a batch (M2PO) takes the run for one.

    Args:
        applies: The factors of phi, as `ExportedConfig.applies` has them.
        responses: The run's tokens.
        resamples: Bootstrap resamples of the intervals, over prompts; 0 leaves them out.
        seed: Of the resampling.

    Raises:
        ConfigError: No factor.
        MismatchProbeError: A factor cannot be had on these responses.
    """
    if not applies:
        raise ConfigError("nothing is known of what this config does", hint="give at least one method")
    assumed_old = responses.old is None
    if assumed_old:
        # Methods without pi_old would take mu for it, as in bypass mode; a decoupled trainer recomputes it.
        responses = dataclasses.replace(responses, old=responses.train)
    method = _Product(tuple(applies))
    ground = ground_of(responses)
    sums = sum_weights({method.name: method}, responses, ground)[method.name]
    if isinstance(sums, MismatchProbeError):
        raise sums
    totals = Cells.of(method, ground, sums, resamples=resamples, seed=seed).totals()
    return ConfigEffect(
        kept_fraction=totals["kept_fraction"],
        mean_weight=totals["mean"],
        ess=totals["ess"],
        reads=tuple(factor.reads for factor in applies),
        assumed_signs=responses.assumed,
        assumed_old=assumed_old,
    )


def _in_words(estimate: Estimate, *, percent: bool = False) -> str:
    if estimate.value is None:
        return f"not known ({estimate.reason})"
    scale, unit = (100.0, " %") if percent else (1.0, "")
    text = f"{scale * estimate.value:.4g}{unit}"
    if estimate.ci_low is None or estimate.ci_high is None:
        return text
    return f"{text} [{scale * estimate.ci_low:.4g}, {scale * estimate.ci_high:.4g}]"
