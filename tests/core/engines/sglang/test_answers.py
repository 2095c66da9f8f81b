"""SGLang's answers, as it gives them and with planted faults."""

import base64

import numpy as np
import pytest

from mismatch_probe.engines.protocol import FixedSequence, PromptRequest
from mismatch_probe.engines.sglang.answers import read_prefill, read_sample
from mismatch_probe.errors import CaptureError

REQUEST = PromptRequest(7, [5, 9, 13], seed=0)
EXPERTS = np.arange(4 * 2 * 3, dtype=np.int32).reshape(4, 2, 3) % 8


def answer(**info):
    held = {
        "prompt_tokens": 3,
        "finish_reason": {"type": "length", "length": 2},
        "output_token_logprobs": [(-0.5, 4, None), (-1.5, 63, None)],
        "routed_experts": base64.b64encode(EXPERTS.tobytes()).decode(),
    }
    return {"output_ids": [4, 63], "meta_info": {**held, **info}}


def test_a_response_is_read_whole():
    got = read_sample(answer(), REQUEST, num_moe_layers=2, top_k=3)
    assert got.response_token_ids == [4, 63] and got.finish_reason == "length"
    assert got.logprobs.tolist() == [-0.5, -1.5]
    assert np.array_equal(got.routing, EXPERTS)
    assert read_sample(answer(), REQUEST, num_moe_layers=0, top_k=0).routing is None


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"output_token_logprobs": [(-0.5, 4, None)]}, "1 log-probabilities of 2"),
        ({"output_token_logprobs": [(-0.5, 4, None), (-1.5, 9, None)]}, "scored id 9 at response position 1"),
        ({"output_token_logprobs": [(None, 4, None), (-1.5, 63, None)]}, "not finite"),
        ({"prompt_tokens": 4}, "counts 4 prompt tokens"),
        ({"finish_reason": {"type": "abort", "message": "out of memory"}}, "abort: out of memory"),
        ({"routed_experts": None}, "routes of 0 of 4 tokens"),
        ({"routed_experts": base64.b64encode(EXPERTS[:3].tobytes()).decode()}, "routes of 3 of 4 tokens"),
        ({"routed_experts": base64.b64encode(EXPERTS.tobytes()[:-4]).decode()}, "no multiple of 2 layers"),
    ],
)
def test_what_is_missing_is_named_with_its_sequence(fault, says):
    with pytest.raises(CaptureError, match=says) as caught:
        read_sample(answer(**fault), REQUEST, num_moe_layers=2, top_k=3)
    assert "sequence 7" in caught.value.message


def test_an_answer_that_is_none_is_an_error():
    with pytest.raises(CaptureError, match="no meta_info"):
        read_sample({"error": "no"}, REQUEST, num_moe_layers=0, top_k=0)


def test_a_prefill_score_of_the_last_id_of_the_vocabulary_is_taken_under_its_own_name():
    scored = {"meta_info": {"input_token_logprobs": [(None, 13, None), (-0.25, 4, None), (-2.0, 0, None)]}}
    sequence = FixedSequence(7, [5, 9, 13], [4, 63])
    assert read_prefill(scored, sequence, vocab_size=64).tolist() == [-0.25, -2.0]
    with pytest.raises(CaptureError, match="scored id 0 at response position 1, not 63"):
        read_prefill(scored, sequence, vocab_size=65)
