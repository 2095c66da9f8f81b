import copy
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.engines.protocol import EngineSpec, FixedSequence, PromptRequest
from mismatch_probe.engines.registry import engines
from mismatch_probe.engines.server import modes
from mismatch_probe.engines.server.answers import read_echo, read_prompt_logprobs, read_sample
from mismatch_probe.engines.server.vllm_process import command_flags
from mismatch_probe.errors import CaptureError, ConfigError

REQUEST = PromptRequest(3, [5, 6], 0)
# As vLLM 0.32's server answers, shortened.
SAMPLED = {
    "choices": [
        {
            "token_ids": [9, 2],
            "prompt_token_ids": [5, 6],
            "finish_reason": "stop",
            "logprobs": {"tokens": ["token_id:9", "token_id:2"], "token_logprobs": [-0.5, -1.25]},
        }
    ],
    "usage": {"prompt_tokens": 2},
}
SCORED = FixedSequence(3, [5, 6], [9, 2])
ECHOED = {
    "choices": [
        {
            "logprobs": {
                "tokens": ["token_id:5", "token_id:6", "token_id:9", "token_id:2", "token_id:7"],
                "token_logprobs": [None, -3.0, -0.5, -1.25, -4.0],
            }
        }
    ]
}


def changed(answer, **changes):
    answer = copy.deepcopy(answer)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = answer["choices"][0]
        for name in parents:
            place = place[name]
        place[last] = value
    return answer


def test_a_sample_is_read():
    got = read_sample(SAMPLED, REQUEST)
    assert got.response_token_ids == [9, 2]
    assert got.finish_reason == "stop"
    assert np.array_equal(got.logprobs, np.float32([-0.5, -1.25]))
    # One of the two ways to name ids is enough, and a count of the prompt where its ids are not returned.
    for without in ({"token_ids": None}, {"logprobs__tokens": ["a", "b"]}, {"prompt_token_ids": None}):
        assert read_sample(changed(SAMPLED, **without), REQUEST).response_token_ids == [9, 2]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt_token_ids": [1, 5, 6]}, "other prompt ids"),
        ({"token_ids": [9, 3]}, "lists of token ids differ"),
        ({"token_ids": None, "logprobs__tokens": ["a", "b"]}, "no token ids"),
        ({"logprobs": None}, "no log-probabilities"),
        ({"logprobs__token_logprobs": [-0.5]}, "1 log-probabilities for 2 tokens"),
        ({"logprobs__token_logprobs": [-0.5, None]}, "token 1"),
        ({"logprobs__token_logprobs": [-0.5, math.nan]}, "token 1"),
        ({"logprobs__token_logprobs": [-0.5, 0.2]}, "above 0"),
        ({"logprobs__token_logprobs": [-9999.0, -1.0]}, "-9999"),
    ],
)
def test_a_sample_that_is_not_what_was_asked_for_is_an_error(changes, says):
    with pytest.raises(CaptureError, match=says) as caught:
        read_sample(changed(SAMPLED, **changes), REQUEST)
    assert "sequence 3" in caught.value.message


def test_a_server_that_adds_a_token_to_the_prompt_is_found_by_its_count():
    answer = {**changed(SAMPLED, prompt_token_ids=None), "usage": {"prompt_tokens": 3}}
    with pytest.raises(CaptureError, match="counts 3"):
        read_sample(answer, REQUEST)


def test_prefill_scores_are_those_of_the_response():
    assert np.array_equal(read_echo(ECHOED, SCORED), np.float32([-0.5, -1.25]))
    prompt = [
        None,
        {"6": {"logprob": -3.0}},
        {"9": {"logprob": -0.5}, "1": {"logprob": -2}},
        {"2": {"logprob": -1.25}},
    ]
    answer = {"choices": [{"prompt_logprobs": prompt, "prompt_token_ids": [5, 6, 9, 2]}]}
    assert np.array_equal(read_prompt_logprobs(answer, SCORED), np.float32([-0.5, -1.25]))
    other = {"choices": [{**answer["choices"][0], "prompt_logprobs": [*prompt[:3], {"8": {"logprob": -1}}]}]}
    with pytest.raises(CaptureError, match="token 1"):
        read_prompt_logprobs(other, SCORED)


def test_scores_of_other_ids_are_an_error():
    with pytest.raises(CaptureError, match="other ids"):
        read_echo(ECHOED, FixedSequence(3, [5, 6], [9, 3]))


@given(
    st.lists(st.floats(-8, 8), min_size=3, max_size=12),
    st.floats(0.2, 3).filter(lambda t: abs(t - 1) > 0.1),
)
def test_raw_and_processed_are_told_apart_by_a_gap(logits, temperature):
    z = np.array(logits)

    def named(scaled):
        return dict(zip("abcdefghijkl", scaled - np.logaddexp.reduce(scaled), strict=False))

    gap = z.max() - z.min()
    expected = modes.PROCESSED if gap >= 0.5 else None
    if abs(gap - 0.5) > 1e-6:
        assert modes.temperature_mode(named(z), named(z / temperature), temperature) == expected
        assert modes.temperature_mode(named(z), named(z), temperature) == (modes.RAW if expected else None)


def test_another_gap_is_neither():
    assert modes.temperature_mode({"a": -0.1, "b": -3.0}, {"a": -0.1, "b": -9.0}, 0.8) is None


def test_truncation_to_one_token_tells_raw_from_processed():
    assert modes.truncation_mode(0.0, -0.7) == modes.PROCESSED
    assert modes.truncation_mode(-0.7, -0.7) == modes.RAW
    assert modes.truncation_mode(0.0, -1e-5) is None


def test_only_processed_log_probabilities_pass():
    modes.require_processed(modes.PROCESSED, "temperature")
    with pytest.raises(ConfigError, match="do not follow"):
        modes.require_processed(modes.RAW, "temperature")
    with pytest.raises(CaptureError, match="could not be measured"):
        modes.require_processed(None, "temperature")
    assert modes.is_plain(SamplingConfig())
    assert not modes.is_plain(SamplingConfig(top_k=5))


def test_a_server_by_address_gives_less_than_one_of_our_own():
    entry = engines.get("vllm-server").item
    own, foreign = entry.able({}), entry.able({"url": "http://host"})
    assert own.forced_decode
    assert own.prefill_parameters == {"temperature", "top_p", "top_k"}
    assert not foreign.forced_decode
    assert foreign.prefill_parameters == frozenset()
    assert "worker extension" in foreign.reason["routing"]


def test_a_key_is_no_option():
    spec = EngineSpec(
        "unused", "bfloat16", 8, False, 0, 0, {"url": "http://127.0.0.1:9", "api_key": "sk-planted"}
    )
    for name in ("openai-server", "vllm-server"):
        with pytest.raises(ConfigError, match="api_key") as caught:
            engines.get(name).item.make(spec)
        assert "sk-planted" not in str(caught.value)


def test_options_become_flags():
    flags = {
        "max_num_seqs": 4,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "x": None,
        "overrides": {"a": 1},
    }
    assert command_flags(flags) == [
        "--max-num-seqs=4", "--enforce-eager", "--no-enable-prefix-caching", '--overrides={"a": 1}',
    ]  # fmt: skip
