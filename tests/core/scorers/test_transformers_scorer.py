"""The scorer on the embedded model: alignment, batching, temperature, errors."""

import numpy as np
import pytest
import torch

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.assets.model_facts import read_model_facts
from mismatch_probe.errors import ConfigError, EngineUnavailableError
from mismatch_probe.scorers.protocol import ScoreRequest, ScorerSpec
from mismatch_probe.scorers.registry import scorers

MODEL = resolve_model("tiny-qwen3-moe")
FACTS = read_model_facts(MODEL.path)
RNG = np.random.default_rng(0)
REQUESTS = [
    ScoreRequest(i, RNG.integers(4, 40, size=3 + i).tolist(), RNG.integers(4, 40, size=20 - 3 * i).tolist())
    for i in range(5)
]


def load(dtype="float32", **options):
    spec = ScorerSpec(MODEL.path, dtype, FACTS.num_moe_layers, FACTS.top_k, options)
    return scorers.get("transformers").item.make(spec)


def score(scorer, requests=REQUESTS, temperature=1.0, batching="forward", capture=False):
    return scorer.score(
        requests,
        temperature=temperature,
        batching=batching,
        capture_routing=capture,
        progress=lambda *_: None,
    )


@pytest.fixture(scope="module")
def scorer():
    return load()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_are_those_of_the_model_written_out(scorer, temperature):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL.path, dtype=torch.float32).eval()
    for request, scored in zip(REQUESTS, score(scorer, temperature=temperature), strict=True):
        ids = torch.tensor([[*request.prompt_token_ids, *request.response_token_ids]])
        with torch.inference_mode():
            log_p = torch.log_softmax(model(input_ids=ids).logits[0] / temperature, dim=-1)
        begin = len(request.prompt_token_ids)
        expected = [log_p[begin - 1 + t, token].item() for t, token in enumerate(request.response_token_ids)]
        entropy = -(log_p.exp() * log_p).sum(-1)[begin - 1 : -1]
        assert scored.logprobs == pytest.approx(expected, abs=2e-5)
        assert scored.entropy == pytest.approx(entropy.numpy(), abs=2e-5)


def test_padding_does_not_leak(scorer):
    batched, single = score(scorer), score(scorer, batching="repeat")
    for one, other in zip(batched, single, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)


def test_the_same_batching_is_exactly_the_same():
    scorer = load("bfloat16", batch_size=4, repeat_batch_size=4)
    for one, other in zip(score(scorer), score(scorer, batching="repeat"), strict=True):
        assert np.array_equal(one.logprobs, other.logprobs)


def test_routes_cover_the_fed_tokens_and_replay_of_them_is_exact():
    scorer = load("bfloat16")
    free = score(scorer, capture=True)
    replayed = score(
        scorer,
        [
            ScoreRequest(r.sequence_id, r.prompt_token_ids, r.response_token_ids, s.routing)
            for r, s in zip(REQUESTS, free, strict=True)
        ],
    )
    for request, one, other in zip(REQUESTS, free, replayed, strict=True):
        fed = len(request.prompt_token_ids) + len(request.response_token_ids) - 1
        assert one.routing.shape == (fed, FACTS.num_moe_layers, FACTS.top_k)
        assert np.array_equal(one.logprobs, other.logprobs)


def test_an_empty_response_has_no_scores(scorer):
    (scored,) = score(scorer, [ScoreRequest(0, [5, 6], [])])
    assert scored.logprobs.shape == (0,)


@pytest.mark.parametrize("options", [{"batch_sise": 4}, {"batch_size": 0}, {"attention": 3}])
def test_bad_options_are_refused(options):
    with pytest.raises(ConfigError, match=r"train\.options"):
        load(**options)


def test_an_attention_that_does_not_exist_is_a_clear_error():
    with pytest.raises(EngineUnavailableError, match="cannot load"):
        load(attention="no_such_attention")


def test_a_float32_head_multiplies_what_the_bfloat16_model_gives_in_float32():
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL.path, dtype=torch.bfloat16).eval()
    (scored,) = score(load("bfloat16", float32_head=True), REQUESTS[:1])
    (rounded,) = score(load("bfloat16"), REQUESTS[:1])
    begin, ids = (
        len(REQUESTS[0].prompt_token_ids),
        [*REQUESTS[0].prompt_token_ids, *REQUESTS[0].response_token_ids],
    )
    with torch.inference_mode():
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0].float()
        log_p = torch.log_softmax(hidden @ model.lm_head.weight.float().T, dim=-1)
    expected = log_p[begin - 1 : -1].gather(-1, torch.tensor(ids[begin:])[:, None])[:, 0].numpy()
    assert scored.logprobs == pytest.approx(expected, abs=1e-5)
    assert not np.allclose(rounded.logprobs, expected, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_sequences_do_not_see_each_other(scorer, attention):
    packed = score(load(packing=True, attention=attention, batch_size=3))
    for one, other in zip(score(scorer), packed, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)
        assert one.entropy == pytest.approx(other.entropy, abs=2e-5)


def test_packed_routes_are_captured_and_replayed_in_place():
    padded, packed = load(), load(packing=True)
    free, captured = score(padded, capture=True), score(packed, capture=True)
    for one, other in zip(free, captured, strict=True):
        assert np.array_equal(one.routing, other.routing)
    reversed_routes = [
        ScoreRequest(
            r.sequence_id, r.prompt_token_ids, r.response_token_ids, (FACTS.num_experts - 1) - s.routing
        )
        for r, s in zip(REQUESTS, free, strict=True)
    ]
    for one, other, own in zip(
        score(padded, reversed_routes), score(packed, reversed_routes), free, strict=True
    ):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)
        assert not np.allclose(one.logprobs, own.logprobs, atol=1e-3)


def test_packing_is_refused_where_layers_carry_state():
    from types import SimpleNamespace

    from mismatch_probe.scorers.transformers_scorer import _require_attention_layers

    with pytest.raises(ConfigError, match="linear_attention"):
        _require_attention_layers(
            SimpleNamespace(config=SimpleNamespace(layer_types=["full_attention", "linear_attention"]))
        )


def test_a_float32_router_chooses_by_float32_logits():
    from mismatch_probe.scorers.transformers_routing import router_modules

    plain, wide = load("bfloat16"), load("bfloat16", float32_router=True)
    hidden = torch.randn(200, 128, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    router = router_modules(wide._model)[0]
    expected = hidden.float() @ router_modules(plain._model)[0].weight.float().T
    with torch.inference_mode():
        logits, gates, ids = router(hidden)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, expected, atol=1e-5)
    assert torch.equal(ids.sort(-1).values, expected.topk(ids.shape[-1]).indices.sort(-1).values)
    assert gates.dtype == torch.bfloat16
    assert any(
        not np.array_equal(one.logprobs, other.logprobs)
        for one, other in zip(score(plain), score(wide), strict=True)
    )


def test_a_float32_router_needs_a_router():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from mismatch_probe.scorers.transformers_routing import widen_routers

    tiny = Qwen3Config(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="no router"):
        widen_routers(Qwen3ForCausalLM(tiny))
