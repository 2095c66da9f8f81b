import pytest

from mismatch_probe.config.model import DEFAULT_LEGS, SamplingConfig
from mismatch_probe.engines.protocol import EngineCapabilities
from mismatch_probe.errors import ConfigError
from mismatch_probe.preflight.capabilities import Pair, settle
from mismatch_probe.scorers.protocol import ScorerCapabilities
from mismatch_probe.scorers.registry import scorers

ALL = EngineCapabilities(True, True, True, True, weight_reload=True, keep_sets=True)
NOTHING_BUT_SAMPLING = EngineCapabilities(
    True,
    True,
    False,
    False,
    {"routing": "the server keeps them", "prefill_parameters": "prompt scores are raw"},
    sampling_parameters=frozenset({"temperature", "top_p"}),
    prefill_parameters=frozenset(),
)
TRAINER = ScorerCapabilities(True, True, True, keep_sets=True)


def asked(
    able,
    *,
    legs=DEFAULT_LEGS,
    trainer=TRAINER,
    routing=True,
    legs_asked=False,
    routing_asked=False,
    **sampling,
):
    return settle(
        Pair("server", able, "trainer", trainer),
        legs,
        SamplingConfig(**sampling),
        routing=routing,
        legs_asked=legs_asked,
        routing_asked=routing_asked,
    )


def test_a_pair_that_can_do_all_is_asked_for_all():
    settled = asked(ALL, top_p=0.9, temperature=0.7)
    assert settled.legs == DEFAULT_LEGS
    assert settled.routing
    assert settled.left_out == ()


def test_what_only_the_defaults_ask_for_is_left_out_with_its_reason():
    settled = asked(NOTHING_BUT_SAMPLING, temperature=0.7)
    assert settled.legs == ("rollout/decode", "train/forward", "train/reference", "train/repeat")
    assert not settled.routing
    said = [str(item) for item in settled.left_out]
    assert any("rollout/prefill needs prefill scoring under temperature" in line for line in said)
    assert any("routing" in line and "the server keeps them" in line for line in said)
    assert any("weight_reload" in line for line in said)


def test_keep_sets_are_recorded_where_sampling_is_truncated_and_both_sides_can():
    assert asked(ALL, top_p=0.9).keep_sets and asked(ALL, top_k=5).keep_sets
    assert not asked(ALL).keep_sets and not asked(ALL, top_p=0.9, keep_sets=False).keep_sets
    without = asked(NOTHING_BUT_SAMPLING, top_p=0.9)
    assert not without.keep_sets and any("keep_sets" in str(item) for item in without.left_out)


@pytest.mark.parametrize(
    ("able", "trainer", "sampling", "says"),
    [
        (NOTHING_BUT_SAMPLING, TRAINER, {"top_p": 0.9}, "which server does not have"),
        (ALL, ScorerCapabilities(True, True, True), {"top_p": 0.9}, "which trainer does not have"),
        (ALL, TRAINER, {}, "nothing is truncated"),
    ],
)
def test_keep_sets_that_were_asked_for_and_cannot_be_are_an_error(able, trainer, sampling, says):
    with pytest.raises(ConfigError, match=says):
        asked(able, trainer=trainer, keep_sets=True, **sampling)


def test_prefill_scores_of_the_raw_distribution_do_at_temperature_1():
    assert "rollout/prefill" in asked(NOTHING_BUT_SAMPLING).legs


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"legs": ("rollout/decode", "rollout/forced"), "legs_asked": True}, "forced_decode"),
        ({"legs": ("rollout/decode", "train/replay"), "legs_asked": True}, "routing"),
        (
            {"legs": ("rollout/decode", "rollout/prefill"), "legs_asked": True, "temperature": 0.5},
            "temperature",
        ),
        ({"routing_asked": True}, "routing"),
        ({"top_k": 5}, "top_k"),
    ],
)
def test_what_was_asked_for_and_is_missing_is_an_error_that_names_it(changes, says):
    with pytest.raises(ConfigError, match=says) as caught:
        asked(NOTHING_BUT_SAMPLING, **changes)
    assert "server" in caught.value.message


def test_a_trainer_without_replay_is_told_from_one_without_scores():
    with pytest.raises(ConfigError, match="train/replay needs replay, which trainer"):
        asked(
            ALL,
            legs=("rollout/decode", "train/replay"),
            legs_asked=True,
            trainer=ScorerCapabilities(True, True, False),
        )
    with pytest.raises(ConfigError, match="train/forward needs scoring"):
        asked(ALL, trainer=ScorerCapabilities(False, True, True))


@pytest.mark.parametrize(
    ("options", "scoring", "temperature"),
    [
        ({"engine": "vllm-server"}, True, True),
        ({"engine": "vllm-server", "url": "http://host"}, True, False),
        ({"engine": "vllm-server", "url": "http://host", "reading": "forced"}, False, True),
        ({"engine": "openai-server", "url": "http://host", "top_p": 0.9}, False, False),
        ({"engine": "transformers"}, True, True),
        ({"engine": "transformers", "top_k": 5}, False, True),
        ({"engine": "transformers", "top_k": 5, "reading": "forced"}, True, True),
    ],
)
def test_a_rollout_engine_as_scorer_can_read_what_it_declares(options, scoring, temperature):
    able = scorers.get("rollout-engine").item.able(options)
    assert (able.scoring, able.temperature) == (scoring, temperature)
    assert scoring or able.reason["scoring"]


def test_a_scorer_that_reads_at_temperature_1_alone_is_refused_elsewhere():
    trainer = ScorerCapabilities(True, True, True, {"temperature": "raw"}, temperature=False)
    assert "train/forward" in asked(ALL, trainer=trainer).legs
    with pytest.raises(ConfigError, match="scoring under temperature"):
        asked(ALL, trainer=trainer, temperature=0.7)
