"""What a recommendation takes for granted, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mismatch_probe.export.measured import look_up, read
from mismatch_probe.recommendation.fits import Fit
from mismatch_probe.simulate.responses import Responses

_READS = {
    "pi/mu": "W is pi / mu, everything between the policy that sampled and the one that is trained",
    "pi_old/mu": "the weight is pi_old / mu, the mismatch at equal weights, on top of a clipped pi / pi_old",
    "pi/pi_old": "the ratio is pi / pi_old: the mismatch with the rollout engine is not in it",
}


def assumptions(
    result: Mapping[str, Any], responses: Responses, reads: str | None, fit: Fit | None = None
) -> list[str]:
    """What was assumed.

    Args:
        result: result.json.
        responses: The run's responses.
        reads: Which ratio the chosen correction weighs by, or None.
        fit: How its hyperparameters were found; None for those of its authors.
    """
    said = []
    if reads is not None:
        said.append(
            f"{_READS[reads]}; what W contains in each framework's recipe stands under reads_by_framework"
        )
    said.append(f"measured on {result.get('weights_reads')}")
    if responses.old is None:
        said.append("no staleness: both sides had the same weights, and updates within a batch come on top")
    else:
        said.append(
            "what to watch is of pi / mu, staleness included: where a framework logs pi_old / mu, "
            "alarms are that much too far out"
        )
    if responses.assumed:
        said.append(
            "no advantages other than 0 in this run: both signs were tried on every response, all of size 1"
        )
    for sign, word in ((1.0, "positive"), (-1.0, "negative")):
        if not (responses.advantages * sign > 0).any():
            said.append(
                f"no response with a {word} advantage: what corrections do to such responses was not seen, and the signs "
                "could not be weighed against each other"
            )
    longest = read(result, "sequence.max_length")
    if longest is not None:
        said.append(
            f"responses of up to {longest.value:.0f} tokens: log W grows with length, mismatch-probe simulate shows how"
        )
    sampling = look_up(result, "provenance.sampling")
    if isinstance(sampling, Mapping):
        shown = [
            f"{name} {sampling[name]:g}"
            for name in ("temperature", "top_p", "top_k")
            if isinstance(sampling.get(name), int | float)
        ]
        if shown:
            said.append(f"the sampling of this run: {', '.join(shown)}")
    if fit is not None and fit.target.startswith("share"):
        said.append(
            f"{fit.target}: {100 * fit.level:g} %, so that thresholds act on outliers and on staleness, not on this drift"
        )
    elif fit is not None:
        said.append(f"{fit.target} {fit.level:g}")
    return said
