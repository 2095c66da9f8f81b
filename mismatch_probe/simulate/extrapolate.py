"""What corrections would do on longer responses and staler weights than were measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.simulate.respond import respond_all
from mismatch_probe.simulate.response import MethodResponse, Unavailable
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.simulate.stale_updates import MeasuredUpdates, draw_tokens, stale_log_ratio
from mismatch_probe.stats.layout import SequenceLayout

if TYPE_CHECKING:
    from mismatch_probe.weights import WeightMethod

FloatArray = npt.NDArray[np.float64]

STALENESS = (1, 2, 4, 8, 16, 32, 64)
# Beyond this many times the longest response, what was measured says nothing of how errors accumulate.
MAX_STRETCH = 8
MIN_SEQUENCES = 32


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
        measured: Whether the length lies within what was measured (then only the staleness is modelled).
        drawn: "none" at N = 1; "measured" where updates were drawn from checkpoints, "model" where from a
            Gaussian model.
        sequences: Responses made up.
        log_weight: Mean of their log W, nats; None where refused.
        responses: What each correction does, by key, both signs tried on every response; empty where refused.
            Intervals say how well so many made-up responses know a number, not how well the run does.
        reason: Why there are no responses, or None.
    """

    length: int
    staleness: int
    measured: bool
    drawn: Literal["none", "measured", "model"]
    sequences: int
    log_weight: float | None
    responses: dict[str, MethodResponse | Unavailable]
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
    methods: Sequence[str | WeightMethod] | Mapping[str, WeightMethod],
    responses: Responses,
    *,
    lengths: Sequence[int],
    staleness: Sequence[int] = STALENESS,
    model: StalenessModel | None = None,
    updates: MeasuredUpdates | None = None,
    sequences: int = 1024,
    tokens: int = 2_000_000,
    resamples: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[ExtrapolatedPoint]:
    """Tries corrections on made-up responses whose mismatch was measured; all on the same ones.

    Length: whole measured responses, drawn at random and put end to end, then cut; a shorter one is a random
    stretch of a measured one. Dependence within a response is kept, across responses there is none: where
    errors persist over long stretches the result is optimistic. W = (pi / pi_old) (pi_old / mu); the mismatch
    is the measured pi_old / mu. The update's ratio is drawn with it from measured checkpoints where they are
    given, from the model otherwise, with k = 0 .. N - 1 updates behind it in equal shares.

    Args:
        methods: Names, or methods, or methods by key.
        responses: What was measured.
        lengths: Lengths to try, tokens.
        staleness: N to try; only 1 can be had without a model.
        model: How far updates move the policy; None takes `measured_staleness`.
        updates: Measured updates over the tokens of `responses` that count.
        sequences: Responses to make up for each point, fewer where they are very long.
        tokens: Of the responses of one point together; at least 32 responses are made up all the same.
        resamples: Bootstrap resamples of the made-up responses; 0 leaves out intervals.
        seed: Of all draws.
        progress: Told of each point's responses and tokens when it is done.

    Raises:
        ConfigError: A length or an N below 1.
    """
    if min(lengths, default=0) < 1 or min(staleness, default=0) < 1:
        raise ConfigError("lengths and staleness must be at least 1")
    source = _Source.of(responses, model, updates)
    points = []
    for length in lengths:
        count = max(MIN_SEQUENCES, min(sequences, tokens // length))
        for steps in staleness:
            point = _try(methods, source, length, steps, count, resamples=resamples, seed=seed)
            points.append(point)
            if progress is not None:
                progress(count, count * length)
    return points


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """What made-up responses are drawn from.

    Attributes:
        mismatch: log pi_old - log mu of the tokens that count, nats.
        layout: The measured responses they belong to.
        longest: Tokens of the longest.
        model: How far updates move the policy, or None.
        updates: Measured updates, or None.
    """

    mismatch: FloatArray
    layout: SequenceLayout
    longest: int
    model: StalenessModel | None
    updates: MeasuredUpdates | None

    @classmethod
    def of(
        cls, responses: Responses, model: StalenessModel | None, updates: MeasuredUpdates | None
    ) -> _Source:
        above = responses.train if responses.old is None else responses.old
        lengths = responses.lengths().astype(np.int64)
        mismatch = (above - responses.rollout)[responses.mask]
        if responses.assumed:  # the second half repeats the first with the other sign
            lengths, mismatch = lengths[: len(lengths) // 2], mismatch[: len(mismatch) // 2]
        if updates is not None and updates.mismatch.shape != mismatch.shape:
            raise ConfigError(f"updates of {updates.mismatch.size} tokens for responses of {mismatch.size}")
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return cls(
            mismatch=mismatch,
            layout=SequenceLayout.from_arrays(offsets, responses.clusters[: len(lengths)]),
            longest=int(lengths.max()),
            model=model if model is not None else measured_staleness(responses),
            updates=updates,
        )


def _try(
    methods: Sequence[str | WeightMethod] | Mapping[str, WeightMethod],
    source: _Source,
    length: int,
    steps: int,
    count: int,
    *,
    resamples: int,
    seed: int,
) -> ExtrapolatedPoint:
    drawn: Literal["none", "measured", "model"] = (
        "none" if steps == 1 else "model" if source.updates is None else "measured"
    )
    reason, made = _refusal(length, steps, source), None
    if reason is None:
        try:
            made = _make_up(source, length, steps, count, seed)
        except InconclusiveError as error:  # the checkpoints do not reach so far
            reason = str(error)
    if made is None:
        return ExtrapolatedPoint(length, steps, length <= source.longest, drawn, 0, None, {}, reason)
    return ExtrapolatedPoint(
        length=length,
        staleness=steps,
        measured=length <= source.longest,
        drawn=drawn,
        sequences=count,
        log_weight=float(made.log_weight().mean()),
        responses=respond_all(methods, made, resamples=resamples, seed=seed),
        reason=None,
    )


def _refusal(length: int, steps: int, source: _Source) -> str | None:
    if length > MAX_STRETCH * source.longest:
        return f"{length} tokens are more than {MAX_STRETCH} times the longest response ({source.longest})"
    if steps > 1 and source.model is None:
        return "how far an update moves the policy is neither given nor measured (no pi_old in this run)"
    return None


def _make_up(source: _Source, length: int, steps: int, count: int, seed: int) -> Responses:
    """Responses of one length, with pi_old, both signs of A on each."""
    generator = np.random.default_rng([seed, length, steps])
    behind = generator.permutation(np.arange(count) % steps)
    if steps > 1 and source.updates is not None and source.model is not None:
        stale = stale_log_ratio(source.updates, behind, source.model.growth, generator, length=length)
        log_mismatch, update = stale.mismatch.ravel(), stale.update.ravel()
    else:
        drawn = [draw_tokens(source.layout, length, generator) for _ in range(count)]
        log_mismatch = source.mismatch[np.concatenate(drawn)]
        variance = np.repeat(
            2.0 * (behind * 0.0 if source.model is None else source.model.kl(behind)), length
        )
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
