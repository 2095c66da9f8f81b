"""Reading over the ids that sampling kept: against brute force, and against an engine that truncates for real."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.engines.protocol import EngineSpec, PromptRequest
from mismatch_probe.engines.transformers_engine import make_transformers_engine
from mismatch_probe.scorers.forward import over_keep_set
from mismatch_probe.scorers.protocol import ScoreRequest, ScorerSpec
from mismatch_probe.scorers.transformers_scorer import make_transformers_scorer
from mismatch_probe.trace.keep_sets import KeepSet

VOCABULARY = 12


@given(
    logits=st.lists(
        st.lists(st.floats(-80, 80, width=32), min_size=VOCABULARY, max_size=VOCABULARY),
        min_size=1,
        max_size=5,
    ),
    random=st.randoms(),
)
def test_mass_and_entropy_are_those_of_the_kept_ids(logits, random):
    log_p = torch.log_softmax(torch.tensor(logits), -1)
    rows = [random.sample(range(VOCABULARY), random.randint(1, VOCABULARY)) for _ in logits]
    # Behind rows of an earlier block, which must not be read.
    all_rows = [[0, 1], *rows]
    kept = KeepSet(
        np.array([i for row in all_rows for i in row], np.int32), np.cumsum([0, *map(len, all_rows)])
    )
    mass, entropy = over_keep_set(log_p, kept, 1)
    for i, row in enumerate(rows):
        values = log_p[i, row].double()
        assert mass[i].item() == pytest.approx(torch.logsumexp(values, 0).item(), abs=1e-5, rel=1e-5)
        own = torch.softmax(values, 0)
        assert entropy[i].item() == pytest.approx(torch.special.entr(own).sum().item(), abs=1e-4)


@pytest.mark.parametrize("truncation", [{"top_p": 0.8}, {"top_k": 5}, {"top_p": 0.9, "top_k": 8}])
def test_over_the_recorded_ids_the_trainer_describes_the_sampled_distribution(truncation):
    checkpoint = resolve_model("tiny-qwen3-moe").path
    sampling = SamplingConfig(temperature=1.3, max_tokens=24, samples=1, **truncation)
    engine = make_transformers_engine(
        EngineSpec(checkpoint, "float32", 128, False, 0, 0, {"batch_size": 2}, keep_sets=True)
    )
    prompts = [[5, 9, 13, 20], [7, 8, 9, 10, 11, 12], [21, 5]]
    sampled = engine.sample(
        [PromptRequest(i, p, seed=i) for i, p in enumerate(prompts)], sampling, lambda *_: None
    )
    engine.close()
    scorer = make_transformers_scorer(ScorerSpec(checkpoint, "float32", 0, 0, {}))

    def read(keep):
        requests = [
            ScoreRequest(s.sequence_id, prompt, s.response_token_ids, keep_set=s.keep_set if keep else None)
            for s, prompt in zip(sampled, prompts, strict=True)
        ]
        scored = scorer.score(
            requests, temperature=1.3, batching="forward", capture_routing=False, progress=lambda *_: None
        )
        return np.concatenate([s.logprobs for s in scored])

    mu = np.concatenate([s.logprobs for s in sampled])
    assert np.abs(read(keep=True) - mu).max() < 1e-4
    # One-sided without them: the trainer's own mass of what was cut is missing from every token.
    assert (read(keep=False) - mu).max() < 1e-4 and (read(keep=False) - mu).mean() < -0.005
