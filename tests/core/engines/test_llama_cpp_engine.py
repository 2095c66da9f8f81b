"""Real llama.cpp on a small GGUF file: what it samples, what it forces, what it reads, against transformers."""

import numpy as np
import pytest
import torch
from gguf_model import write_gguf
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.engines.llama_cpp_engine import make_llama_cpp_engine, sampled_logprob
from mismatch_probe.engines.protocol import EngineSpec, FixedSequence, PromptRequest
from mismatch_probe.errors import ConfigError

PROMPTS = [[5, 9, 13, 20], [7, 8, 9, 10, 11, 12, 13], [21, 5], [30, 31, 32]]


@pytest.fixture(scope="module")
def checkpoint():
    return resolve_model("tiny-qwen3-moe").path


@pytest.fixture(scope="module")
def gguf(checkpoint, tmp_path_factory):
    return write_gguf(checkpoint, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def spec(checkpoint, gguf):
    def make(**options):
        return EngineSpec(
            model_path=checkpoint, dtype="float32", max_model_len=256, routing=False, num_moe_layers=0, top_k=0,
            options={"gguf": str(gguf), "threads": 1, "cache_dtype": "f32", **options},
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def engine(spec):
    # Fewer rows than prompts and batches shorter than a sequence: both have to be taken in pieces.
    made = make_llama_cpp_engine(spec(parallel=2, batch_tokens=16))
    yield made
    made.close()


def ignore(sequences, tokens):
    pass


def requests(prompts=PROMPTS):
    return [PromptRequest(i, prompt, seed=100 + i) for i, prompt in enumerate(prompts)]


def fixed(sampled, prompts=PROMPTS):
    return [
        FixedSequence(s.sequence_id, prompt, s.response_token_ids)
        for s, prompt in zip(sampled, prompts, strict=True)
    ]


@pytest.mark.parametrize("truncation", [{}, {"top_p": 0.8, "top_k": 12}])
def test_forced_ids_take_the_very_way_of_sampled_ones(engine, truncation):
    sampling = SamplingConfig(temperature=0.8, max_tokens=40, samples=1, **truncation)
    sampled = engine.sample(requests(), sampling, ignore)
    again = engine.sample(requests(), sampling, ignore)
    forced = engine.force_decode(fixed(sampled), sampling, ignore)
    read = engine.score_prefill(fixed(sampled), sampling, ignore)
    for one, other, given_ids, prefill in zip(sampled, again, forced, read, strict=True):
        assert one.response_token_ids == other.response_token_ids
        assert np.array_equal(one.logprobs, given_ids)
        assert len(prefill) == len(one.response_token_ids)
        assert np.abs(prefill - one.logprobs).mean() < 0.01
        assert one.finish_reason in ("stop", "length")


def test_it_reads_what_transformers_reads(engine, checkpoint):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    sampling = SamplingConfig(temperature=0.7, max_tokens=40, samples=1)
    sequences = fixed(engine.sample(requests(), sampling, ignore))
    for sequence, read in zip(sequences, engine.score_prefill(sequences, sampling, ignore), strict=True):
        ids = torch.tensor([[*sequence.prompt_token_ids, *sequence.response_token_ids]])
        with torch.inference_mode():
            log_p = torch.log_softmax(model(ids).logits[0].double() / 0.7, -1)
        first = len(sequence.prompt_token_ids) - 1
        expected = log_p[torch.arange(first, ids.shape[1] - 1), ids[0, first + 1 :]].numpy()
        # llama.cpp's CPU kernels look exponentials up in half precision.
        assert np.abs(read - expected).max() < 0.02
        assert np.abs(read - expected).mean() < 2e-3


def test_draws_follow_the_distribution_whose_logprob_is_returned(engine):
    sampling = SamplingConfig(temperature=1.2, top_p=0.9, max_tokens=1, samples=1)
    count = 600
    sampled = engine.sample([PromptRequest(i, PROMPTS[0], seed=i) for i in range(count)], sampling, ignore)
    log_p = {s.response_token_ids[0]: float(s.logprobs[0]) for s in sampled}
    ids = sorted(log_p)
    seen = np.array([sum(s.response_token_ids[0] == token for s in sampled) for token in ids])
    p = np.exp([log_p[token] for token in ids])
    assert p.sum() <= 1 + 1e-5
    # Ids that were never drawn are one more class, unless everything of the support was.
    rest = max(1 - p.sum(), 0.0)
    keep = p * count >= 5
    observed = [*seen[keep], seen[~keep].sum()]
    expected = count * np.array([*p[keep], p[~keep].sum() + rest])
    assert chisquare(observed, expected * count / expected.sum()).pvalue > 1e-3


@given(
    logits=st.lists(st.floats(-20, 20), min_size=2, max_size=30, unique=True),
    top_k=st.integers(1, 30),
    top_p=st.floats(0.05, 1),
    temperature=st.floats(0.2, 3),
)
def test_the_support_is_the_smallest_set_of_the_best_that_reaches_top_p(logits, top_k, top_p, temperature):
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    values = np.array(logits)
    p = np.exp(values / temperature - np.logaddexp.reduce(values / temperature))
    best = sorted(range(len(p)), key=lambda i: -values[i])[:top_k]
    kept, mass = [], 0.0
    for i in best:
        if mass >= top_p * p[best].sum() and kept and top_p < 1:
            break
        kept.append(i)
        mass += p[i]
    total = sum(np.exp(sampled_logprob(values, i, sampling)) for i in kept)
    assert total == pytest.approx(1.0, abs=1e-9) or abs(mass / p[best].sum() - top_p) < 1e-9


def test_a_file_that_llama_cpp_cannot_load_is_a_clear_error(checkpoint, gguf, spec, tmp_path):
    path = tmp_path / "other.gguf"
    path.write_bytes(gguf.read_bytes().replace(b"blk.3.ffn_norm", b"blk.3.ffn_form"))
    with pytest.raises(ConfigError, match=r"cannot load other\.gguf"):
        make_llama_cpp_engine(spec(gguf=str(path)))
    with pytest.raises(ConfigError, match=r"rollout\.options\.gguf"):
        make_llama_cpp_engine(EngineSpec(checkpoint, "float32", 64, False, 0, 0, {}))
