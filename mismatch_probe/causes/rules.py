"""Rules that name causes: each yields a cause only where its own evidence goes beyond its own noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mismatch_probe.causes.catalogue import CAUSES

Basis = Literal["proof", "test", "intervention"]

MIN_TREND = 0.25
MIN_SEEN = 0.1
SEEN_T = 6.0
BROKEN_FACTOR = 10.0
BROKEN_SIZE = 0.02
BIMODAL = 0.4
EITHER = 0.9
REPLAY_EXPLAINS = 0.9
OWN_FLIPS = 0.03
FIRST_LAYER = 0.1
ONLY_ROUTERS = 0.999
INPUTS_AGREE = 0.1
ANY_FLIPS = 1e-4
ABOVE_BEFORE = 3.0
ABOVE_NEXT = 1.5
FLAT_KURTOSIS = 3.2
OWN_STEP = 0.3
HOLM_LEVEL = 0.05
KNOB_LEAVES = 0.5
KNOB_CAUSES = {
    "train-float32-head": "bf16-head",
    "train-eager": "attention-backend",
    "train-sdpa": "attention-backend",
    "train-float32-router": "noisy-router",
    "train-batch-1": "batch-variance",
    "rollout-batch-1": "batch-variance",
    "rollout-batch-invariant": "batch-variance",
    "rollout-tp-2": "parallelism",
}
"""Knobs that stand for one cause where turning them takes drift away."""

_CONSTANTS = (("rope", "rope-base"), ("rotary", "rope-base"), ("eps", "norm-epsilon"))
_WEIGHTS = {
    "stale": "stale-weights",
    "unsynchronised": "unsynchronised-layer",
    "low_rank": "missing-low-rank-delta",
    "fp8": "fp8-weights",
    "int8": "int8-weights",
    "permuted": "permuted-experts",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One number behind a cause.

    Attributes:
        where: Its place in result.json.
        value: What was measured.
        bar: What it was held against, or None.
    """

    where: str
    value: float | str
    bar: float | None = None


@dataclass(frozen=True, slots=True)
class NamedCause:
    """A cause with positive evidence.

    Attributes:
        cause: Id in the catalogue.
        code: MP6xx.
        title: Of the catalogue.
        basis: "proof" (both sides' tensors, constants or ids differ), "test" (a fingerprint beyond its own noise) or
            "intervention" (changing it takes the drift away).
        because: One sentence.
        facts: The numbers.
    """

    cause: str
    code: str
    title: str
    basis: Basis
    because: str
    facts: tuple[Fact, ...]


def number(value: Any) -> float:
    """A finite number, or 0."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _named(cause: str, basis: Basis, because: str, *facts: Fact) -> NamedCause:
    entry = CAUSES[cause]
    return NamedCause(cause, entry.code, entry.title, basis, because, facts)


def _check_fact(check: Mapping[str, Any]) -> Fact:
    return Fact(f"data_quality.checks[{check['code']}: {check['name']}]", check["observed"], check["bar"])


def find_broken_data(checks: list[Mapping[str, Any]]) -> Iterator[NamedCause]:
    """Faults of the arrays, from the validity checks."""
    by_name = {
        "finite log-probabilities": "sentinel-values",
        "no padding in the responses": "padding-in-mask",
        "no token shift": "token-shift",
        "rows not duplicated or swapped": "swapped-rows",
    }
    for name, cause in by_name.items():
        for check in checks:
            if check["name"] == name:
                yield _named(cause, "test", check["detail"], _check_fact(check))


def find_ids(evidence: Mapping[str, Any]) -> Iterator[NamedCause]:
    """Other token ids on the training side."""
    ids = evidence.get("ids")
    if not ids:
        return
    if ids["first_token_missing"]:
        yield _named(
            "bos-dropped",
            "proof",
            f"{ids['first_token_missing']} of {ids['num_sequences']} prompts differ by their first token",
            Fact("causes.evidence.ids.first_token_missing", ids["first_token_missing"], 0),
        )
    other = ids["prompts_differ"] - ids["first_token_missing"]
    if ids["responses_differ"] or other:
        yield _named(
            "retokenised-text",
            "proof",
            f"{ids['responses_differ']} responses and {other} prompts of {ids['num_sequences']} have other ids in training",
            Fact("causes.evidence.ids.responses_differ", ids["responses_differ"], 0),
        )


def find_constants(evidence: Mapping[str, Any]) -> Iterator[NamedCause]:
    """Constants that differ between the checkpoints."""
    for index, item in enumerate(evidence.get("constants") or ()):
        key = str(item["key"])
        cause = next((name for part, name in _CONSTANTS if part in key.rpartition(".")[2]), "other-constants")
        yield _named(
            cause,
            "proof",
            f"{key} is {item['rollout']} in the rollout and {item['train']} in training",
            Fact(f"causes.evidence.constants[{index}]", key),
        )


def find_weights(evidence: Mapping[str, Any]) -> Iterator[NamedCause]:
    """Tensors that differ between the checkpoints."""
    weights = evidence.get("weights")
    if not weights or weights["kind"] == "equal":
        return
    largest = weights["differences"][0]
    yield _named(
        _WEIGHTS[weights["kind"]],
        "proof",
        f"{weights['num_different']} of {weights['num_tensors']} tensors differ, in {len(weights['layers'])} of "
        f"{weights['num_layers']} layers; most in {largest['name']}, by {100 * largest['relative']:.2g} % of its norm",
        Fact("causes.evidence.weights.num_different", weights["num_different"], 0),
        Fact("causes.evidence.weights.kind", weights["kind"]),
    )


def find_sampling(
    evidence: Mapping[str, Any], checks: list[Mapping[str, Any]], result: Mapping[str, Any]
) -> Iterator[NamedCause]:
    """What was sampled from and what was logged: penalties, temperature, raw log-probabilities, cut support."""
    trend = evidence["log_odds"]
    if trend and trend["explained_by_seen"] > MIN_SEEN and abs(trend["seen_t"]) > SEEN_T:
        # A penalty also bends the line that a temperature would, so nothing after it is looked at.
        yield _named(
            "repetition-penalty",
            "test",
            f"tokens that occurred before are {trend['seen']:+.2g} nats off new ones of equal log-odds "
            f"(t = {trend['seen_t']:.0f}); that explains {trend['explained_by_seen']:.0%} more of the displacement",
            Fact("causes.evidence.log_odds.explained_by_seen", trend["explained_by_seen"], MIN_SEEN),
            Fact("causes.evidence.log_odds.seen_t", trend["seen_t"], SEEN_T),
        )
        return
    failed = {check["code"]: check for check in checks}
    sampling = result["provenance"]["sampling"]
    # An import need not say how its tokens were sampled: what rests on that is then left open.
    temperature = sampling["temperature"]
    heat = 0.0 if temperature is None else math.log(float(temperature))
    processed = heat != 0.0 or (sampling["top_p"] or 1.0) < 1.0 or (sampling["top_k"] or 0) > 0
    explained = trend["explained_by_slope"] if trend else 0.0
    if "MP106" in failed and explained > MIN_TREND:
        ratio = float(failed["MP106"]["observed"])
        raw = heat != 0.0 and math.log(ratio) * heat < 0.0
        yield _named(
            "raw-logprobs" if raw else "temperature",
            "test",
            f"{failed['MP106']['detail']}; the run sampled at "
            + ("an unknown temperature, so " if temperature is None else f"{temperature:g}, so ")
            + ("the rollout logged its law before the temperature" if raw else "one side does not apply it"),
            _check_fact(failed["MP106"]),
            Fact("causes.evidence.log_odds.explained_by_slope", explained, MIN_TREND),
        )
    elif "MP107" in failed:
        yield _named("truncated-sampling", "test", failed["MP107"]["detail"], _check_fact(failed["MP107"]))
    elif "MP111" in failed and processed and not _parted(evidence):
        yield _named("raw-logprobs", "test", failed["MP111"]["detail"], _check_fact(failed["MP111"]))


def _parted(evidence: Mapping[str, Any]) -> bool:
    """Whether some sequences are unrelated while the others agree, or part after a good start."""
    spread = evidence["sequences"]
    if not spread or spread["num_unrelated"] < 2:
        return False
    late = spread["num_late"] >= 0.5 * spread["num_unrelated"]
    either = spread["num_unrelated"] + spread["num_agreeing"] >= EITHER * spread["num_sequences"]
    return bool(late or (either and spread["num_agreeing"] >= BIMODAL * spread["num_sequences"]))


def find_sequences(evidence: Mapping[str, Any], checks: list[Mapping[str, Any]]) -> Iterator[NamedCause]:
    """Single sequences that are broken or were tokenized again."""
    spread = evidence["sequences"]
    if not spread:
        return
    if spread["largest"] > max(BROKEN_SIZE, BROKEN_FACTOR * spread["second"]):
        yield _named(
            "broken-sequence",
            "test",
            f"the median |log ratio| of sequence {spread['sequence']} is {spread['largest']:.2g} nats, the next largest "
            f"of {spread['num_sequences']} sequences is {spread['second']:.2g}",
            Fact("causes.evidence.sequences.largest", spread["largest"], BROKEN_FACTOR * spread["second"]),
        )
    elif any(check["code"] == "MP101" for check in checks) and _parted(evidence):
        yield _named(
            "retokenised-text",
            "test",
            f"{spread['num_unrelated']} of {spread['num_sequences']} sequences read as unrelated tokens, "
            f"{spread['num_late']} of them after a start that agrees; {spread['num_agreeing']} agree throughout",
            Fact("causes.evidence.sequences.num_unrelated", spread["num_unrelated"], 0),
        )


def find_noisy_router(evidence: Mapping[str, Any], routing: Mapping[str, Any] | None) -> Iterator[NamedCause]:
    """Routers that flip beyond what rounding does, where forcing the rollout's experts takes the drift away.

    Rounding flips few experts in the first MoE layer and a few more in each that follows, since inputs part by and by. A
    layer that flips more than the one after it, or three times more than the one before where it is the last, flips by
    itself; so does a first layer that disagrees for over a tenth of the tokens.

    Args:
        evidence: The section `causes.evidence`.
        routing: The section `routing`, or None.
    """
    explained = _explained_by_replay(evidence)
    if explained is None or explained < REPLAY_EXPLAINS or not routing or not routing.get("layers"):
        return
    rates = [1.0 - number(_plain(layer["set_agreement"])) for layer in routing["layers"]]
    place = layer_that_flips_by_itself(rates)
    if place is None:
        return
    layer = routing["layers"][place]
    yield _named(
        "noisy-router",
        "intervention",
        f"the router of layer {layer['layer']} disagrees for {rates[place]:.1%} of the tokens, out of line with the others, "
        f"and with the rollout's experts forced {explained:.0%} of K3 is gone",
        Fact(f"routing.layers[{place}].set_agreement", 1.0 - rates[place]),
        Fact("causes.evidence.legs[train/replay].k3", evidence["legs"]["train/replay"]["k3"]),
    )


def find_low_precision_router(
    evidence: Mapping[str, Any], routing: Mapping[str, Any] | None
) -> Iterator[NamedCause]:
    """Routers that flip although nothing else differs: with the rollout's experts forced, both forwards agree.

    Where rounding flips experts, it also moves everything else, and that stays when they are forced. Here at most a
    thousandth of K3 and a tenth of the mean |log ratio| stays, so the routers read the same inputs and decide otherwise.

    Args:
        evidence: The section `causes.evidence`.
        routing: The section `routing`, or None.
    """
    explained = _explained_by_replay(evidence)
    if explained is None or explained < ONLY_ROUTERS or not routing or not routing.get("layers"):
        return
    left, total = number(evidence["legs"]["train/replay"]["mean_abs"]), number(evidence["total"]["mean_abs"])
    rates = [1.0 - number(_plain(layer["set_agreement"])) for layer in routing["layers"]]
    place = next((place for place, rate in enumerate(rates) if rate > ANY_FLIPS), None)
    if place is None or left > INPUTS_AGREE * total:
        return
    yield _named(
        "noisy-router",
        "intervention",
        f"with the rollout's experts forced, {left / total:.1%} of the mean |log ratio| is left: the routers read the same "
        f"and disagree, from layer {routing['layers'][place]['layer']} on ({rates[place]:.2%} of its tokens)",
        Fact("causes.evidence.legs[train/replay].mean_abs", left, INPUTS_AGREE * total),
        Fact(f"routing.layers[{place}].set_agreement", 1.0 - rates[place]),
    )


def layer_that_flips_by_itself(rates: Sequence[float]) -> int | None:
    """Place of the first MoE layer whose rate of flips is out of line, see `find_noisy_router`; None where none is."""
    for place, rate in enumerate(rates):
        if rate < OWN_FLIPS:
            continue
        first, last = place == 0, place == len(rates) - 1
        before = rates[place - 1] if not first else 0.0
        above_next = not last and rate > ABOVE_NEXT * rates[place + 1]
        if (first and rate > FIRST_LAYER) or (
            not first and rate > ABOVE_BEFORE * before and (last or above_next)
        ):
            return place
    return None


def find_routing(evidence: Mapping[str, Any]) -> Iterator[NamedCause]:
    """Flipped experts, where forcing the rollout's takes the drift away."""
    explained = _explained_by_replay(evidence)
    if explained is not None and explained >= REPLAY_EXPLAINS:
        replay, total = evidence["legs"]["train/replay"], evidence["total"]
        yield _named(
            "moe-routing",
            "intervention",
            f"with the rollout's experts forced, {explained:.0%} of K3 is gone",
            Fact("causes.evidence.legs[train/replay].k3", replay["k3"], total["k3"]),
        )


def _explained_by_replay(evidence: Mapping[str, Any]) -> float | None:
    replay, total = evidence["legs"].get("train/replay"), number(evidence["total"]["k3"])
    return None if replay is None or not total else 1.0 - number(replay["k3"]) / total


def _plain(item: Any) -> Any:
    return item.get("value") if isinstance(item, Mapping) else item


def find_own_prefill(evidence: Mapping[str, Any]) -> Iterator[NamedCause]:
    """The engine against itself."""
    prefill, total = evidence["legs"].get("rollout/prefill"), evidence["total"]
    if prefill is not None and number(prefill["mean_abs"]) > OWN_STEP * number(total["mean_abs"]):
        yield _named(
            "engine-self-disagreement",
            "test",
            f"the engine's prefill is {prefill['mean_abs']:.2g} nats from its own decode, "
            f"the trainer {total['mean_abs']:.2g}",
            Fact(
                "causes.evidence.legs[rollout/prefill].mean_abs",
                prefill["mean_abs"],
                OWN_STEP * total["mean_abs"],
            ),
        )


def find_head(evidence: Mapping[str, Any]) -> Iterator[NamedCause]:
    """One side's head rounded to BF16."""
    edge = evidence["rounding"]
    if edge and edge["spacing"] is not None and edge["kurtosis"] < FLAT_KURTOSIS:
        yield _named(
            "bf16-head",
            "test",
            f"no logit is displaced by more than a BF16 step ({edge['largest']:.2g} of {edge['spacing']:g} nats) and errors "
            f"are flatter than Gaussian (kurtosis {edge['kurtosis']:.1f}): one side rounds its logits, nothing else differs",
            Fact("causes.evidence.rounding.largest", edge["largest"], edge["spacing"]),
            Fact("causes.evidence.rounding.kurtosis", edge["kurtosis"], FLAT_KURTOSIS),
        )


def find_knobs(ablation: Mapping[str, Any] | None) -> Iterator[NamedCause]:
    """Knobs that take at least half of K3 away beyond their Holm-corrected noise, where they stand for one cause."""
    for index, row in enumerate((ablation or {}).get("rows", ())):
        cause, change = KNOB_CAUSES.get(str(row.get("knob"))), row.get("change")
        if cause is None or not change or change["p_holm"] is None or change["p_holm"] >= HOLM_LEVEL:
            continue
        if change["k3_after"] <= KNOB_LEAVES * change["k3_before"]:
            yield _named(
                cause,
                "intervention",
                f"{row['changes']} ({row['knob']}) takes K3 from {change['k3_before']:.2g} to {change['k3_after']:.2g} nats "
                f"(Holm p = {change['p_holm']:.2g})",
                Fact(f"ablation.rows[{index}].change.k3_after", change["k3_after"], change["k3_before"]),
            )
