"""transformers as a rollout engine, on a small mixture of experts with random weights."""

import numpy as np
import pytest

from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.engines.protocol import EngineSpec, FixedSequence, PromptRequest
from mismatch_probe.engines.registry import engines
from mismatch_probe.errors import CaptureError, ConfigError
from mismatch_probe.scorers.protocol import ScoreRequest, ScorerSpec
from mismatch_probe.scorers.registry import scorers

PROMPTS = ([5, 9, 11], [7, 3], [4, 4, 8, 20, 31], [6])
LAYERS, TOP_K = 2, 2


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    import torch
    from transformers import GenerationConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = tmp_path_factory.mktemp("models") / "moe"
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=48, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_experts=6, num_experts_per_tok=TOP_K,
        max_position_embeddings=128, initializer_range=0.4, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    # What a checkpoint wishes for its samples must not touch those of an audit.
    model.generation_config = GenerationConfig(
        eos_token_id=2, do_sample=True, temperature=0.3, top_k=3, repetition_penalty=1.5
    )
    model.save_pretrained(folder)
    return folder


def started(checkpoint, dtype="bfloat16", **options):
    spec = EngineSpec(checkpoint, dtype, 128, True, LAYERS, TOP_K, {"batch_size": 4, **options})
    return engines.get("transformers").item.make(spec)


@pytest.fixture(scope="module")
def engine(checkpoint):
    return started(checkpoint)


def sampled(engine, seed=0, prompts=PROMPTS, **sampling):
    requests = [PromptRequest(i, prompt, seed + i) for i, prompt in enumerate(prompts)]
    return engine.sample(requests, SamplingConfig(**{"max_tokens": 24, **sampling}), quiet)


def fixed(sequences, prompts=PROMPTS):
    return [FixedSequence(s.sequence_id, prompts[s.sequence_id], s.response_token_ids) for s in sequences]


@pytest.fixture(scope="module")
def responses(engine):
    return sampled(engine, temperature=0.8)


@pytest.mark.parametrize("sampling", [{"temperature": 0.8}, {"temperature": 1.3, "top_p": 0.7, "top_k": 9}])
def test_forced_decode_is_bit_equal_to_what_was_sampled(engine, sampling):
    found = sampled(engine, **sampling)
    forced = engine.force_decode(fixed(found), SamplingConfig(**sampling), quiet)
    for sequence, again in zip(found, forced, strict=True):
        assert np.array_equal(sequence.logprobs, again)


def test_prefill_equals_the_scorer_with_the_same_batching_bit_for_bit(engine, responses, checkpoint):
    spec = ScorerSpec(checkpoint, "bfloat16", LAYERS, TOP_K, {"batch_size": 4})
    scorer = scorers.get("transformers").item.make(spec)
    requests = [
        ScoreRequest(s.sequence_id, s.prompt_token_ids, s.response_token_ids) for s in fixed(responses)
    ]
    trained = scorer.score(
        requests, temperature=0.8, batching="forward", capture_routing=False, progress=quiet
    )
    prefill = engine.score_prefill(fixed(responses), SamplingConfig(temperature=0.8), quiet)
    assert all(np.array_equal(a, b.logprobs) for a, b in zip(prefill, trained, strict=True))


def test_in_float32_the_cache_changes_nothing_but_rounding(checkpoint):
    wide = started(checkpoint, dtype="float32")
    found = sampled(wide, temperature=0.8)
    prefill = wide.score_prefill(fixed(found), SamplingConfig(temperature=0.8), quiet)
    for sequence, scores in zip(found, prefill, strict=True):
        np.testing.assert_allclose(sequence.logprobs, scores, atol=2e-5)


def test_a_response_has_a_seed_of_its_own_and_ends_at_the_stop_id(engine, responses):
    again = sampled(engine, temperature=0.8)
    assert [s.response_token_ids for s in again] == [s.response_token_ids for s in responses]
    assert [s.response_token_ids for s in sampled(engine, seed=50, temperature=0.8)] != [
        s.response_token_ids for s in responses
    ]
    many = sampled(engine, prompts=[[5, 9]] * 32, max_tokens=60)
    assert {s.finish_reason for s in many} == {"stop", "length"}
    for sequence in many:
        ended = sequence.response_token_ids[-1] == 2
        assert ended == (sequence.finish_reason == "stop")
        assert 2 not in sequence.response_token_ids[:-1]
        assert len(sequence.response_token_ids) == len(sequence.logprobs)


def test_routes_are_those_of_the_fed_tokens(checkpoint):
    wide = started(checkpoint, dtype="float32")
    found = sampled(wide)
    spec = ScorerSpec(checkpoint, "float32", LAYERS, TOP_K, {})
    requests = [ScoreRequest(s.sequence_id, s.prompt_token_ids, s.response_token_ids) for s in fixed(found)]
    trained = (
        scorers.get("transformers")
        .item.make(spec)
        .score(requests, temperature=1.0, batching="forward", capture_routing=True, progress=quiet)
    )
    for sequence, forward in zip(found, trained, strict=True):
        assert sequence.routing.dtype == np.int16
        assert np.array_equal(sequence.routing, forward.routing)


def test_the_draws_follow_the_distribution_that_is_reported(engine):
    found = sampled(engine, prompts=[[5, 9, 11]] * 400, max_tokens=1, top_k=3)
    reported = {s.response_token_ids[0]: float(np.exp(s.logprobs[0])) for s in found}
    assert len(reported) == 3
    assert sum(reported.values()) == pytest.approx(1, abs=1e-4)
    drawn = [s.response_token_ids[0] for s in found]
    for token, probability in reported.items():
        spread = 4 * np.sqrt(probability * (1 - probability) / len(drawn))
        assert abs(drawn.count(token) / len(drawn) - probability) < spread


def test_what_it_cannot_give_is_refused(engine, responses, checkpoint):
    with pytest.raises(CaptureError, match="whole distributions"):
        engine.score_prefill(fixed(responses), SamplingConfig(top_p=0.5), quiet)
    with pytest.raises(ConfigError, match=r"rollout\.options\.speed") as caught:
        started(checkpoint, speed=3)
    assert "batch_size" in (caught.value.hint or "")
