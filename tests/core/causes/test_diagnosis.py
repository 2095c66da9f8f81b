"""Diagnosis on planted laws: every array fault is named, clean runs name nothing, and nothing is named without evidence."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.planted_changes import break_one, pad, put, shift, swap
from benchmarks.planted_drift import LawModel, draw_laws
from mismatch_probe.causes.catalogue import CAUSES
from mismatch_probe.causes.diagnosis import above_floor, diagnose
from mismatch_probe.causes.evidence import Readings, gather_evidence, seen_before
from mismatch_probe.causes.knobs import KNOBS
from mismatch_probe.causes.rules import KNOB_CAUSES, layer_that_flips_by_itself
from mismatch_probe.result import to_json
from mismatch_probe.stats.divergences import log_complement
from mismatch_probe.stats.validity import validity_checks

NOISE = LawModel(noise=0.05)


def draw(model=NOISE, seed=0):
    return draw_laws(model, prompts=24, samples=2, length=60, rng=np.random.default_rng(seed))


def readings(laws, train=None, **changes):
    rng = np.random.default_rng(1)
    train = laws.train if train is None else train
    # What repetition does: a tenth of the planted noise. What precision does: as much as the planted noise.
    legs = {
        "train/repeat": laws.train + rng.normal(0, 0.005, laws.train.size),
        "train/reference": laws.train + (laws.train - laws.rollout) * rng.choice([-1, 1], laws.train.size),
    }
    base = Readings(
        rollout=laws.rollout, train=train, offsets=laws.offsets, clusters=laws.clusters,
        response_tokens=rng.integers(0, 64, laws.train.size).astype(np.int32), prompts=[[1, 5, 9]] * laws.clusters.size, legs=legs,
    )  # fmt: skip
    return replace(base, **changes)


def diagnosed(read, *, entropy=None, temperature=1.0, ablation=None, routing=None, **evidence):
    checks = validity_checks(read.train, read.rollout, read.offsets, read.clusters, entropy=entropy)
    result = {
        "data_quality": {"checks": to_json(checks)},
        "causes": {"evidence": {**to_json(gather_evidence(read)), **evidence}},
        "provenance": {"sampling": {"temperature": temperature, "top_p": 1.0, "top_k": -1}},
        "routing": routing,
    }
    return diagnose(result, ablation)


def rows(laws):
    return np.split(laws.train, laws.offsets[1:-1])


@pytest.mark.parametrize("seed", range(5))
def test_noise_as_large_as_rounding_needs_no_cause(seed):
    diagnosis = diagnosed(readings(draw(seed=seed)))
    assert diagnosis.status == "nothing_to_explain"
    assert diagnosis.causes == ()


ARRAY_FAULTS = {
    "token-shift": lambda r: shift(r, 1, 1.0),
    "padding-in-mask": lambda r: pad(r, 8, 0.3),
    "swapped-rows": lambda r: swap(r, 2),
    "broken-sequence": lambda r: break_one(r, 1.5),
    "sentinel-values": lambda r: put(r, np.nan, 3),
}


@pytest.mark.parametrize("cause", ARRAY_FAULTS)
def test_faults_of_the_arrays_are_named_first(cause):
    laws = draw()
    train = np.concatenate(ARRAY_FAULTS[cause](rows(laws)))
    diagnosis = diagnosed(readings(laws, train))
    assert diagnosis.causes[0].cause == cause
    assert diagnosis.causes[0].code == CAUSES[cause].code
    assert diagnosis.causes[0].facts
    assert diagnosis.status == "identified"


@pytest.mark.parametrize(("temperature", "raw"), [(0.7, False), (1.3, False), (0.7, True), (1.3, True)])
def test_the_side_that_forgot_the_temperature_is_told_from_raw_logprobs(temperature, raw):
    train = temperature if raw else 1.0
    model = replace(NOISE, rollout_temperature=temperature, train_temperature=train, log_raw=raw)
    laws = draw(model)
    diagnosis = diagnosed(readings(laws), entropy=laws.entropy, temperature=temperature)
    assert diagnosis.causes[0].cause == ("raw-logprobs" if raw else "temperature")


@pytest.mark.parametrize("cut", [{"top_p": 0.8}, {"top_k": 3}])
def test_truncated_sampling_is_named(cut):
    laws = draw(replace(NOISE, **cut))
    assert diagnosed(readings(laws)).causes[0].cause == "truncated-sampling"


def test_a_penalty_on_seen_tokens_is_named_and_not_taken_for_a_temperature():
    laws = draw()
    read = readings(laws)
    seen = seen_before(read.response_tokens, read.offsets, read.prompts)
    odds = laws.rollout - log_complement(np.minimum(laws.rollout, -1e-9)) - np.where(seen, 0.5, -0.2)
    rollout = -np.logaddexp(0.0, -odds)
    assert diagnosed(replace(read, rollout=rollout)).causes[0].cause == "repetition-penalty"


def test_ids_that_differ_are_proof():
    laws = draw()
    read = readings(laws)
    dropped = replace(read, train_prompts=[row[1:] for row in read.prompts])
    assert [item.cause for item in diagnosed(dropped).causes] == ["bos-dropped"]
    other = read.response_tokens.copy()
    other[5] += 1
    assert [item.cause for item in diagnosed(replace(read, train_responses=other)).causes] == [
        "retokenised-text"
    ]


@pytest.mark.parametrize(
    ("key", "cause"),
    [
        ("rope_parameters.rope_theta", "rope-base"),
        ("rms_norm_eps", "norm-epsilon"),
        ("hidden_act", "other-constants"),
    ],
)
def test_constants_that_differ_are_proof(key, cause):
    diagnosis = diagnosed(readings(draw()), constants=[{"key": key, "rollout": "1", "train": "2"}])
    assert [item.cause for item in diagnosis.causes] == [cause]
    assert diagnosis.causes[0].basis == "proof"


def test_drift_above_the_floor_without_evidence_is_not_identified():
    far = draw(replace(NOISE, noise=0.6))
    diagnosis = diagnosed(readings(far, legs={"train/repeat": far.train + 1e-3}))
    assert diagnosis.status == "not_identified"
    assert diagnosis.causes == ()
    assert "not identified" in diagnosis.sentence
    assert any("ablate" in item for item in diagnosis.missing)


def test_without_a_floor_nothing_is_said_to_be_above_it():
    evidence = to_json(gather_evidence(readings(draw(), legs={})))
    assert above_floor(evidence) is None


def test_routing_is_named_only_where_replay_takes_the_drift_away():
    far = draw(replace(NOISE, noise=0.6))
    quiet = {"train/repeat": far.train + 1e-3, "train/reference": far.train + 1e-3}
    rest = np.random.default_rng(2).normal(0.0, 0.15, far.rollout.size)
    explained = readings(far, legs={**quiet, "train/replay": far.rollout + rest})
    assert [item.cause for item in diagnosed(explained).causes] == ["moe-routing"]
    partly = readings(far, legs={**quiet, "train/replay": 0.5 * (far.rollout + far.train)})
    assert diagnosed(partly).causes == ()
    layers = [
        {"layer": i, "set_agreement": {"value": value}} for i, value in enumerate((0.99, 0.98, 0.7, 0.9))
    ]
    assert [item.cause for item in diagnosed(explained, routing={"layers": layers}).causes] == [
        "noisy-router"
    ]


def test_routers_that_disagree_where_nothing_else_does_are_named():
    far = draw(replace(NOISE, noise=0.6))
    legs = {"train/repeat": far.train, "train/reference": far.train, "train/replay": far.rollout + 1e-4}
    rates = (0.9999, 0.998, 0.997, 0.996)
    layers = [{"layer": 2 * i, "set_agreement": {"value": value}} for i, value in enumerate(rates)]
    (cause,) = diagnosed(readings(far, legs=legs), routing={"layers": layers}).causes
    assert cause.cause == "noisy-router" and "from layer 2 on" in cause.because
    # Agreement of all routers leaves nothing to blame them for, and a rest that moves too is rounding.
    same = [{**layer, "set_agreement": {"value": 1.0}} for layer in layers]
    assert [c.cause for c in diagnosed(readings(far, legs=legs), routing={"layers": same}).causes] == [
        "moe-routing"
    ]


@pytest.mark.parametrize(
    ("rates", "place"),
    [
        ([0.008, 0.013, 0.017, 0.023], None),
        ([0.05, 0.06, 0.07, 0.09], None),
        ([0.008, 0.067, 0.034, 0.044], 1),
        ([0.008, 0.012, 0.017, 0.153], 3),
        ([0.13, 0.15, 0.17, 0.19], 0),
        ([0.008, 0.012, 0.144, 0.160], None),
    ],
)
def test_a_router_stands_out_against_its_neighbours(rates, place):
    assert layer_that_flips_by_itself(rates) == place


def test_a_knob_names_a_cause_only_beyond_its_own_noise():
    change = {"k3_before": 0.2, "k3_after": 0.01, "p_holm": 0.01}
    row = {"knob": "train-float32-head", "changes": "LM head in float32", "change": change}
    far = draw(replace(NOISE, noise=0.6))
    read = readings(far, legs={"train/repeat": far.train + 1e-3})
    assert [c.cause for c in diagnosed(read, ablation={"rows": [row]}).causes] == ["bf16-head"]
    for weaker in ({"p_holm": 0.2}, {"p_holm": None}, {"k3_after": 0.15}):
        assert diagnosed(read, ablation={"rows": [{**row, "change": {**change, **weaker}}]}).causes == ()
    assert diagnosed(read, ablation={"rows": [{**row, "change": None}]}).causes == ()
    assert diagnosed(readings(draw()), ablation={"rows": [row]}).causes == ()


def test_every_knob_that_names_a_cause_exists():
    assert set(KNOB_CAUSES) <= {knob.name for knob in KNOBS}
    assert set(KNOB_CAUSES.values()) <= set(CAUSES)


def test_tokens_seen_before_are_counted_from_the_prompt_on():
    tokens = np.array([7, 5, 7, 8, 8, 5], dtype=np.int32)
    seen = seen_before(tokens, np.array([0, 3, 6]), [[5], [1]])
    assert seen.tolist() == [False, True, True, False, True, False]
