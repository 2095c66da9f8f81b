"""The registry of knobs: names, and what is known before anything is started."""

import pytest

from mismatch_probe.causes.knobs import KNOBS, choose_knobs, own_setting, settings_of, why_not
from mismatch_probe.errors import ConfigError

CONFIG = {
    "rollout": {"engine": "vllm", "dtype": "bfloat16"},
    "train": {"scorer": "transformers", "dtype": "float32"},
}


def test_names_are_unique_and_each_knob_changes_something():
    assert len({knob.name for knob in KNOBS}) == len(KNOBS)
    assert all(
        knob.dtype or knob.options or knob.environment or knob.checkpoint or knob.side == "refit"
        for knob in KNOBS
    )


def test_knobs_are_chosen_in_the_order_of_the_registry():
    assert [knob.name for knob in choose_knobs(["train-eager", "refit"])] == ["refit", "train-eager"]
    assert choose_knobs(None) == KNOBS


def test_a_wrong_name_names_the_nearest():
    with pytest.raises(ConfigError) as caught:
        choose_knobs(["rollout-batch1"])
    assert "rollout-batch-1" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rollout-bfloat16", "own setting"),
        ("rollout-float32", None),
        ("train-float32", "own setting"),
        ("refit", None),
    ],
)
def test_the_runs_own_setting_is_no_change(name, says):
    (knob,) = choose_knobs([name])
    reason = why_not(knob, CONFIG)
    assert (reason is None) if says is None else says in reason


def test_a_knob_of_another_engine_says_so():
    (knob,) = choose_knobs(["rollout-kv-fp8-e4m3"])
    other = {**CONFIG, "rollout": {"engine": "other", "dtype": "bfloat16"}}
    assert "other" in why_not(knob, other)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("rollout-no-prefix-caching", True),
        ("rollout-prefix-caching", False),
        # Chunked prefill is on, but in larger chunks.
        ("rollout-chunked-prefill", False),
        ("rollout-batch-1", False),
        ("rollout-weights-int8", False),
    ],
)
def test_options_in_force_already_are_no_change(name, own):
    facts = {
        "options": {"max_model_len": 64},
        "details": {
            "settings": {
                "enable_prefix_caching": False, "enable_chunked_prefill": True, "max_num_batched_tokens": 4096,
                "max_num_seqs": 256,
            }
        },
    }  # fmt: skip
    reason = own_setting(choose_knobs([name])[0], settings_of(facts))
    assert (reason is not None) == own
