"""Whether a pair can give what is asked of it, settled before an engine is started."""

from __future__ import annotations

from dataclasses import dataclass

from mismatch_probe.config.model import ROUTED_LEGS, Leg, SamplingConfig
from mismatch_probe.engines.protocol import EngineCapabilities
from mismatch_probe.errors import ConfigError
from mismatch_probe.scorers.protocol import ScorerCapabilities

ENGINE_CAPABILITIES = (
    "sampling", "prefill_scoring", "forced_decode", "routing", "hidden_states", "weight_reload",
    "keep_sets",
)  # fmt: skip
SCORER_CAPABILITIES = ("scoring", "routing", "replay", "hidden_states", "keep_sets")

_ENGINE_LEGS: dict[Leg, str] = {
    "rollout/decode": "sampling",
    "rollout/prefill": "prefill_scoring",
    "rollout/forced": "forced_decode",
    "rollout/refit": "weight_reload",
}


@dataclass(frozen=True, slots=True)
class MissingCapability:
    """Something asked for that one side of a pair cannot give.

    Attributes:
        engine: Registry name of the side that cannot.
        capability: Such as "prefill_scoring", or "sampling of top_p".
        what: What it is needed for, such as "rollout/prefill".
        reason: Why it is missing.
    """

    engine: str
    capability: str
    what: str
    reason: str

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.what} needs {self.capability}, which {self.engine} does not have{reason}"


@dataclass(frozen=True, slots=True)
class Pair:
    """Both sides by name, with what each declares.

    Attributes:
        engine: Name of the rollout engine.
        engine_able: What it can give with its options.
        scorer: Name of the scorer.
        scorer_able: What it can give.
    """

    engine: str
    engine_able: EngineCapabilities
    scorer: str
    scorer_able: ScorerCapabilities


@dataclass(frozen=True, slots=True)
class Settled:
    """What a pair will be asked for.

    Attributes:
        legs: Legs that will be taken.
        routing: Whether routes are captured.
        left_out: What the defaults would have asked for and the pair cannot give.
        keep_sets: Whether the ids that truncated sampling keeps are recorded and read over.
    """

    legs: tuple[Leg, ...]
    routing: bool
    left_out: tuple[MissingCapability, ...]
    keep_sets: bool = False


def unsupported_sampling(
    name: str, able: EngineCapabilities, sampling: SamplingConfig
) -> MissingCapability | None:
    """The first parameter of `sampling` that an engine does not follow, or None."""
    for parameter in _used(sampling):
        if parameter not in able.sampling_parameters:
            reason = able.reason.get("sampling_parameters", "")
            return MissingCapability(
                name,
                f"sampling with {parameter}",
                f"sampling.{parameter}={getattr(sampling, parameter)}",
                reason,
            )
    return None


def missing_for_leg(pair: Pair, leg: Leg, sampling: SamplingConfig) -> MissingCapability | None:
    """What `leg` needs and the pair does not have, or None.

    Args:
        pair: Both sides.
        leg: One leg.
        sampling: Prefill scores have to describe the distribution that was sampled from.
    """
    able = pair.engine_able
    if leg in _ENGINE_LEGS:
        capability = _ENGINE_LEGS[leg]
        if not getattr(able, capability):
            return MissingCapability(pair.engine, capability, leg, able.reason.get(capability, ""))
        if leg == "rollout/prefill":
            for parameter in _used(sampling):
                if parameter not in able.prefill_parameters:
                    reason = able.reason.get("prefill_parameters", "")
                    return MissingCapability(pair.engine, f"prefill scoring under {parameter}", leg, reason)
        return None
    needed = ("scoring", "replay") if leg in ROUTED_LEGS else ("scoring",)
    for capability in needed:
        if not getattr(pair.scorer_able, capability):
            reason = pair.scorer_able.reason.get(capability, "")
            return MissingCapability(pair.scorer, capability, leg, reason)
    if sampling.temperature != 1 and not pair.scorer_able.temperature:
        reason = pair.scorer_able.reason.get("temperature", "")
        return MissingCapability(pair.scorer, "scoring under temperature", leg, reason)
    return None


def missing_for_routing(pair: Pair) -> MissingCapability | None:
    """Which side cannot return the experts it used, or None."""
    if not pair.engine_able.routing:
        return MissingCapability(
            pair.engine, "routing", "capture of routes", pair.engine_able.reason.get("routing", "")
        )
    if not pair.scorer_able.routing:
        return MissingCapability(
            pair.scorer, "routing", "capture of routes", pair.scorer_able.reason.get("routing", "")
        )
    return None


def missing_for_keep_sets(pair: Pair, sampling: SamplingConfig) -> MissingCapability | None:
    """Which side cannot record or use keep-sets that are wanted, or None.

    Raises:
        ConfigError: They were asked for and cannot be had, or nothing is truncated.
    """
    if sampling.keep_sets and not sampling.is_truncated:
        raise ConfigError(
            "sampling.keep_sets=true, but nothing is truncated", hint="set sampling.top_p or sampling.top_k"
        )
    if not sampling.is_truncated or sampling.keep_sets is False:
        return None
    for name, able in ((pair.engine, pair.engine_able), (pair.scorer, pair.scorer_able)):
        if not able.keep_sets:
            missing = MissingCapability(
                name, "keep_sets", "keep-sets of truncated sampling", able.reason.get("keep_sets", "")
            )
            if sampling.keep_sets:
                raise ConfigError(str(missing), hint="leave out sampling.keep_sets, or take another engine")
            return missing
    return None


def settle(
    pair: Pair,
    legs: tuple[Leg, ...],
    sampling: SamplingConfig,
    *,
    routing: bool,
    legs_asked: bool,
    routing_asked: bool,
) -> Settled:
    """Holds what is asked for against what the pair declares.

    Args:
        pair: Both sides.
        legs: Wanted.
        sampling: How responses are sampled.
        routing: Whether routes are wanted.
        legs_asked: Whether the user named the legs; what only the defaults ask for is left out instead.
        routing_asked: Likewise of routing.

    Raises:
        ConfigError: Something asked for cannot be given; the message names the missing capability.
    """
    unfit = unsupported_sampling(pair.engine, pair.engine_able, sampling)
    if unfit is not None:
        raise ConfigError(str(unfit), hint="change sampling.*, or take another rollout engine")
    left_out: list[MissingCapability] = []
    missing = missing_for_routing(pair) if routing else None
    if missing is not None:
        if routing_asked or (legs_asked and any(leg in ROUTED_LEGS for leg in legs)):
            raise ConfigError(str(missing), hint="set routing=false, or take another engine")
        routing = False
        left_out.append(missing)
    kept: list[Leg] = []
    for leg in legs:
        if leg in ROUTED_LEGS and not routing:
            continue
        lacking = missing_for_leg(pair, leg, sampling)
        if lacking is None:
            kept.append(leg)
        elif legs_asked or leg in ("rollout/decode", "train/forward"):
            raise ConfigError(str(lacking), hint=f"leave {leg} out of legs, or take another engine")
        else:
            left_out.append(lacking)
    lacking_sets = missing_for_keep_sets(pair, sampling)
    if lacking_sets is not None:
        left_out.append(lacking_sets)
    keep_sets = sampling.is_truncated and sampling.keep_sets is not False and lacking_sets is None
    return Settled(tuple(kept), routing, tuple(left_out), keep_sets)


def _used(sampling: SamplingConfig) -> tuple[str, ...]:
    """Parameters that differ from sampling from the model's own distribution."""
    used = {
        "temperature": sampling.temperature != 1,
        "top_p": sampling.top_p < 1,
        "top_k": sampling.top_k > 0,
    }
    return tuple(name for name, is_used in used.items() if is_used)
