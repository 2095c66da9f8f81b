"""What corrections would do on longer responses and staler weights than were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError
from mismatch_probe.simulate.respond import respond
from mismatch_probe.simulate.response import MethodResponse
from mismatch_probe.simulate.responses import Responses

FloatArray = npt.NDArray[np.float64]

STALENESS = (1, 2, 4, 8, 16, 32, 64)
# Beyond this many times the longest response, what was measured says nothing of how errors accumulate.
MAX_STRETCH = 8
_MAX_TOKENS = 2_000_000


@dataclass(frozen=True, slots=True)
class StalenessModel:
    """How far the policy has moved from pi_old when mini-batch k of a rollout batch is trained on.

    The update's log-ratio of a token is drawn from N(-v / 2, v), v = 2 kl_per_step k^growth: a policy whose
    ratio to pi_old has mean 1, at a KL of kl_per_step k^growth a token.

    Attributes:
        kl_per_step: KL(pi_old || pi) per token after one update, nats.
        growth: 1 where updates wander, 2 where they push the same way.
        source: Where `kl_per_step` comes from.
    """

    kl_per_step: float
    growth: float = 1.0
    source: str = "given"

    def __post_init__(self) -> None:
        if not (self.kl_per_step >= 0 and np.isfinite(self.kl_per_step) and 0 < self.growth <= 4):
            raise ConfigError(
                f"a staleness of {self.kl_per_step} nats a token growing with power "
                f"{self.growth} makes no sense"
            )

    def kl(self, steps: npt.ArrayLike) -> FloatArray:
        """KL per token after that many updates, nats."""
        return np.asarray(self.kl_per_step * np.asarray(steps, dtype=np.float64) ** self.growth)


@dataclass(frozen=True, slots=True)
class ExtrapolatedPoint:
    """One length and one staleness.

    Attributes:
        length: Tokens of every response.
        staleness: N = rollout batch / mini-batch: how many updates one rollout feeds.
        response: What the correction does, both signs tried on every response; None where refused. Its
            intervals are left out: they would be those of the simulation, not of the run.
        measured: Whether the length lies within what was measured (then only the staleness is modelled).
        reason: Why there is no response, or None.
    """

    length: int
    staleness: int
    response: MethodResponse | None
    measured: bool
    reason: str | None


def measured_staleness(
    responses: Responses, *, steps: float = 1.0, growth: float = 1.0
) -> StalenessModel | None:
    """The staleness model that recomputed log-probabilities imply.

    K3 of the update, mean of pi / pi_old - 1 - log(pi / pi_old), over the tokens that count, taken back by
    `steps` updates.

    Args:
        responses: Responses with pi_old.
        steps: How many updates lie between pi_old and pi.
        growth: As in `StalenessModel`.

    Returns:
        None without pi_old.
    """
    if responses.old is None:
        return None
    update = (responses.train - responses.old)[responses.mask]
    k3 = float((np.expm1(np.minimum(update, 650.0)) - update).mean())
    return StalenessModel(k3 / steps**growth, growth, "K3 of pi against pi_old in this run")


def extrapolate(
    name: str,
    responses: Responses,
    *,
    lengths: Sequence[int],
    staleness: Sequence[int] = STALENESS,
    model: StalenessModel | None = None,
    sequences: int = 1024,
    seed: int = 0,
) -> list[ExtrapolatedPoint]:
    """Tries a correction on made-up responses whose mismatch was measured.

    Length: whole measured responses, drawn at random and put end to end, then cut; a shorter one is a random
    stretch of a measured one. Dependence within a response is kept, across responses there is none: where
    errors persist over long stretches the result is optimistic. W = (pi / pi_old) (pi_old / mu); the mismatch
    is the measured pi_old / mu, the update's ratio is drawn from the model, with k = 0 .. N - 1 updates
    behind it in equal shares.

    Args:
        name: Method, with default hyperparameters.
        responses: What was measured.
        lengths: Lengths to try, tokens.
        staleness: N to try; only 1 can be had without a model.
        model: How far updates move the policy; None takes `measured_staleness`.
        sequences: Responses to make up for each point, fewer where they are very long.
        seed: Of all draws.

    Raises:
        ConfigError: A length or an N below 1.
    """
    if min(lengths, default=0) < 1 or min(staleness, default=0) < 1:
        raise ConfigError("lengths and staleness must be at least 1")
    chosen = model if model is not None else measured_staleness(responses)
    longest = int(responses.lengths().max())
    points = []
    for length in lengths:
        for steps in staleness:
            reason = _refusal(length, steps, longest, chosen)
            response = None
            if reason is None:
                made = _make_up(responses, length, steps, chosen, sequences, seed)
                response = _respond(name, made)
            points.append(ExtrapolatedPoint(length, steps, response, length <= longest, reason))
    return points


def _refusal(length: int, steps: int, longest: int, model: StalenessModel | None) -> str | None:
    if length > MAX_STRETCH * longest:
        return f"{length} tokens are more than {MAX_STRETCH} times the longest response ({longest})"
    if steps > 1 and model is None:
        return "how far an update moves the policy is neither given nor measured (no pi_old in this run)"
    return None


def _respond(name: str, made: Responses) -> MethodResponse:
    from mismatch_probe.weights import get_method

    return respond(get_method(name), made, resamples=0)


def _make_up(
    responses: Responses, length: int, steps: int, model: StalenessModel | None, sequences: int, seed: int
) -> Responses:
    """Responses of one length, with pi_old, both signs of A on each."""
    generator = np.random.default_rng([seed, length, steps])
    count = max(32, min(sequences, _MAX_TOKENS // length))
    above = responses.train if responses.old is None else responses.old
    pool = _Pool.of(np.where(responses.mask, above - responses.rollout, 0.0), responses)
    log_mismatch = np.concatenate([pool.draw(length, generator) for _ in range(count)])
    behind = np.repeat(generator.permutation(np.arange(count) % steps), length)
    variance = 2.0 * (np.zeros(len(behind)) if model is None else model.kl(behind))
    update = generator.normal(-variance / 2.0, np.sqrt(variance))
    # log mu low enough that no made-up log pi is above 0; methods that read probabilities see tokens of e^-3 and rarer.
    rollout = np.minimum(-3.0, -1e-3 - log_mismatch - np.maximum(update, 0.0))
    old = rollout + log_mismatch
    return Responses.of(
        old + update,
        rollout,
        np.arange(count + 1) * length,
        np.arange(count),
        None,
        old_logprobs=old,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """The measured log-ratios, one array a response, and their cumulative share of the tokens."""

    rows: list[FloatArray]
    share: FloatArray

    @classmethod
    def of(cls, log_ratio: FloatArray, responses: Responses) -> _Pool:
        pieces = np.split(log_ratio, responses.offsets[1:-1])
        masks = np.split(responses.mask, responses.offsets[1:-1])
        rows = [piece[mask] for piece, mask in zip(pieces, masks, strict=True)]
        if responses.assumed:  # the second half repeats the first with the other sign
            rows = rows[: len(rows) // 2]
        rows = [row for row in rows if len(row)]
        reached = np.cumsum([len(row) for row in rows], dtype=np.float64)
        return cls(rows, reached / reached[-1])

    def draw(self, length: int, generator: np.random.Generator) -> FloatArray:
        """A made-up response: a stretch of a measured one, or several end to end."""
        pieces: list[FloatArray] = []
        have = 0
        while have < length:
            row = self.rows[int(np.searchsorted(self.share, generator.random(), side="right"))]
            if len(row) > length - have:
                start = int(generator.integers(0, len(row) - (length - have) + 1))
                row = row[start : start + length - have]
            pieces.append(row)
            have += len(row)
        return np.concatenate(pieces)
