"""vLLM's real server on the loopback interface: one of our own, then the same one by its address."""

import json

import numpy as np
import pytest
from running import run_cli

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.assets.model_facts import read_model_facts
from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.engines.protocol import EngineSpec, FixedSequence, PromptRequest
from mismatch_probe.engines.registry import engines
from mismatch_probe.errors import ConfigError
from mismatch_probe.scorers.protocol import ScoreRequest, ScorerSpec
from mismatch_probe.scorers.registry import scorers
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

pytestmark = pytest.mark.engine

PROMPTS = ([1, 5, 9, 11], [1, 7, 3], [1, 4, 4, 8, 20], [1, 6, 6])
WARM = SamplingConfig(temperature=0.7, max_tokens=24)


def quiet(*_):
    pass


def spec(**options):
    path = resolve_model("tiny-qwen3-moe").path
    facts = read_model_facts(path)
    routing = not options.get("url")
    return EngineSpec(path, "bfloat16", 256, routing, facts.num_moe_layers, facts.top_k, options)


@pytest.fixture(scope="module")
def own():
    engine = engines.get("vllm-server").item.make(spec())
    yield engine
    engine.close()
    assert engine._server.ended() is not None


@pytest.fixture(scope="module")
def sampled(own):
    return own.sample([PromptRequest(i, prompt, i) for i, prompt in enumerate(PROMPTS)], WARM, quiet)


@pytest.fixture(scope="module")
def fixed(sampled):
    return [FixedSequence(s.sequence_id, PROMPTS[s.sequence_id], s.response_token_ids) for s in sampled]


@pytest.fixture(scope="module")
def trained(fixed):
    requests = [ScoreRequest(s.sequence_id, s.prompt_token_ids, s.response_token_ids) for s in fixed]
    given = spec()
    scorer = scorers.get("transformers").item.make(
        ScorerSpec(given.model_path, "bfloat16", given.num_moe_layers, given.top_k, {})
    )
    return scorer.score(requests, temperature=0.7, batching="forward", capture_routing=True, progress=quiet)


def mean_gap(left, right):
    return float(np.abs(np.concatenate(list(left)) - np.concatenate(list(right))).mean())


def by_address(own, monkeypatch, name="vllm-server"):
    monkeypatch.setenv("PROBE_TEST_KEY", own._server.key)
    return engines.get(name).item.make(spec(url=own._server.url, api_key_env="PROBE_TEST_KEY"))


def test_every_reading_of_our_own_server_describes_the_sampled_distribution(own, sampled, fixed, trained):
    decode = [s.logprobs for s in sampled]
    forced = own.force_decode(fixed, WARM, quiet)
    prefill = own.score_prefill(fixed, WARM, quiet)
    forward = [s.logprobs for s in trained]
    assert mean_gap(decode, forced) < 2e-3
    assert mean_gap(decode, prefill) < 2e-3
    assert mean_gap(decode, forward) < 0.02
    # The same ids at another temperature are far away: the bars above can fail.
    assert mean_gap(decode, own.score_prefill(fixed, SamplingConfig(), quiet)) > 0.05


def test_routes_over_http_are_those_of_the_fed_tokens(sampled, trained):
    same = []
    for sequence, forward in zip(sampled, trained, strict=True):
        assert sequence.routing.shape == forward.routing.shape
        same.append((np.sort(sequence.routing) == np.sort(forward.routing)).all(axis=-1).ravel())
    assert np.concatenate(same).mean() > 0.9


def test_the_server_answers_nobody_without_its_key(own):
    import httpx

    for path in ("/v1/models", "/collective_rpc", "/version"):
        assert httpx.get(own._server.url + path, trust_env=False).status_code == 401
    assert engines.get("vllm-server").item.able({"url": own._server.url}).sampling
    with pytest.raises(ConfigError, match="refuses the API key") as caught:
        engines.get("openai-server").item.make(
            spec(url=own._server.url, api_key_env="PROBE_TEST_NO_SUCH_KEY")
        )
    assert own._server.key not in str(caught.value)


@pytest.mark.parametrize("name", ["vllm-server", "openai-server"])
def test_a_server_by_address_is_measured_before_it_is_believed(own, sampled, monkeypatch, name):
    engine = by_address(own, monkeypatch, name)
    truncated = SamplingConfig(temperature=0.7, top_p=0.9, max_tokens=8)
    got = engine.sample([PromptRequest(i, prompt, i) for i, prompt in enumerate(PROMPTS)], truncated, quiet)
    assert engine.facts().logprobs_mode == "processed_logprobs"
    assert all(len(s.response_token_ids) == len(s.logprobs) for s in got)
    again = by_address(own, monkeypatch, name)
    repeated = again.sample([PromptRequest(i, prompt, i) for i, prompt in enumerate(PROMPTS)], WARM, quiet)
    # Seeds and distribution are the server's: the same request gives what our own engine got.
    assert [s.response_token_ids[0] for s in repeated] == [s.response_token_ids[0] for s in sampled]


def test_an_audit_by_address_leaves_the_key_nowhere(own, tmp_path):
    out = tmp_path / "run"
    finished = run_cli(
        "audit", "--rollout", "openai-server", "--num-prompts", "8", "--samples", "2", "--max-tokens", "32", "--out", str(out),
        "--set", f"rollout.options.url={own._server.url}", "--set", "rollout.options.api_key_env=PROBE_TEST_KEY",
        "--set", 'legs=["rollout/decode", "rollout/prefill", "train/forward", "train/repeat"]',
        PROBE_TEST_KEY=own._server.key,
    )  # fmt: skip
    assert finished.status in (0, 1, 3), finished.stderr
    trace = Trace(RunDirectory(out), 1)
    assert mean_gap([trace.logprobs("rollout/decode")], [trace.logprobs("rollout/prefill")]) < 2e-3
    assert mean_gap([trace.logprobs("rollout/decode")], [trace.logprobs("train/forward")]) < 0.02
    assert json.loads((out / "manifest.json").read_text())["routing"] is False
    key = own._server.key.encode()
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if key in path.read_bytes()]
    assert own._server.key not in finished.stdout + finished.stderr
