"""The head in tiles: what the plain softmax gives, at a tile's memory, and refused where a model does more to its logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.assets.model_facts import read_model_facts
from mismatch_probe.errors import ConfigError
from mismatch_probe.scorers.protocol import ScoredSequence, ScoreRequest, ScorerSpec
from mismatch_probe.scorers.registry import scorers
from mismatch_probe.scorers.tiled_head import TiledHead

MODEL = resolve_model("tiny-qwen3-moe")
FACTS = read_model_facts(MODEL.path)
RNG = np.random.default_rng(1)
REQUESTS = [
    ScoreRequest(i, RNG.integers(4, 40, size=2 + i % 3).tolist(), RNG.integers(4, 40, size=length).tolist())
    for i, length in enumerate((5, 31, 0, 12, 31, 1, 22))
]


def load(dtype: str = "float32", **options: Any) -> Any:
    spec = ScorerSpec(MODEL.path, dtype, FACTS.num_moe_layers, FACTS.top_k, options)
    return scorers.get("transformers").item.make(spec)


def score(scorer: Any, temperature: float = 1.0, batching: str = "forward") -> list[ScoredSequence]:
    scored: list[ScoredSequence] = scorer.score(
        REQUESTS, temperature=temperature, batching=batching, capture_routing=False, progress=lambda *_: None
    )
    return scored


def plain(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    log_p = torch.log_softmax(logits.float() / temperature, dim=-1)
    return log_p.gather(-1, targets[:, None])[:, 0], torch.special.entr(log_p.exp()).sum(-1)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    vocabulary=st.sampled_from([3, 17, 4095, 4096, 4097, 9000]),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    scale=st.sampled_from([0.05, 1.0, 6.0]),
    extra=st.sampled_from(["nothing", "bias", "cap", "float32"]),
    seed=st.integers(0, 10_000),
)
def test_tiles_are_the_plain_softmax(
    rows: int, vocabulary: int, temperature: float, dtype: torch.dtype, scale: float, extra: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 24, generator=generator).to(dtype)
    weight = (scale * torch.randn(vocabulary, 24, generator=generator)).to(dtype)
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    bias = torch.randn(vocabulary, generator=generator).to(dtype) if extra == "bias" else None
    cap = (lambda logits: torch.tanh(logits / 20.0) * 20.0) if extra == "cap" else None
    wide = extra == "float32"
    head = TiledHead(weight.float() if wide else weight, bias, cap, wide)
    # From the very logits of the tiles: what the product rounds is not the subject here.
    logits = torch.cat(
        [head.logits(hidden, slice(at, at + 4096)) for at in range(0, vocabulary, 4096)], dim=-1
    )
    logprobs, entropy = head.read(hidden, targets, temperature)
    expected, spread = plain(logits.double(), targets, temperature)
    assert logprobs.dtype == entropy.dtype == torch.float32
    tolerance = 1e-5 * max(1.0, float(expected.abs().max()) / 10)
    assert float((logprobs - expected).abs().max()) <= tolerance
    assert float((entropy - spread).abs().max()) <= 5e-5


def test_masked_logits_weigh_nothing() -> None:
    """Some models set logits of ids that do not exist to -inf."""
    hidden, weight = torch.randn(6, 8), torch.randn(5000, 8)

    def masked(logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[:, ::2] = -torch.inf
        return logits

    head, targets = TiledHead(weight, None, masked, False), torch.full((6,), 7)
    logprobs, entropy = head.read(hidden, targets, 1.0)
    expected, spread = plain((hidden @ weight.T)[:, 1::2], torch.full((6,), 3), 1.0)
    assert torch.allclose(logprobs, expected, atol=1e-5) and torch.allclose(entropy, spread, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"float32_head": True}, {"packing": True}], ids=str)
def test_a_model_scores_alike_either_way(dtype: str, options: dict[str, Any]) -> None:
    tiled, whole = load(dtype, head="tiles", **options), load(dtype, head="plain", **options)
    assert tiled.facts().details["head"] == "tiles" and tiled.facts().details["head_difference"] == 0.0
    assert whole.facts().details["head"] == "plain: asked for"
    for temperature in (1.0, 0.6):
        for one, other in zip(score(tiled, temperature), score(whole, temperature), strict=True):
            assert one.sequence_id == other.sequence_id and one.logprobs.shape == other.logprobs.shape
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
            assert one.entropy == pytest.approx(other.entropy, abs=5e-5)


@pytest.mark.parametrize("known", [True, False])
def test_what_a_model_does_to_its_logits_is_known_or_keeps_it_plain(known: bool, monkeypatch: Any) -> None:
    """A soft cap as in Gemma, on this architecture: in the configuration it is known, elsewhere it is noticed."""
    from transformers import Qwen3MoeForCausalLM

    inner = Qwen3MoeForCausalLM.forward

    def capped(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = inner(self, *args, **kwargs)
        output.logits = torch.tanh(output.logits / 5.0) * 5.0
        return output

    monkeypatch.setattr(Qwen3MoeForCausalLM, "forward", capped)
    if known:
        monkeypatch.setattr(
            "mismatch_probe.scorers.tiled_head._after", lambda model: lambda z: torch.tanh(z / 5.0) * 5.0
        )
    scorer = load(head="auto")
    head = scorer.facts().details["head"]
    assert (head == "tiles") is known
    for one, other in zip(score(scorer), score(load(head="plain")), strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    if not known:
        assert "other bits" in head


def test_a_head_in_parts_is_refused_when_asked_for_tiles(monkeypatch: Any) -> None:
    from mismatch_probe.scorers.transformers_scorer import TransformersScorer

    monkeypatch.setattr(TransformersScorer, "whole_head", False)
    assert load(head="auto").facts().details["head"].startswith("plain: this process")
    with pytest.raises(ConfigError, match="tiles"):
        load(head="tiles")


def test_an_autocast_forward_stays_plain() -> None:
    assert load("bfloat16", autocast=True, head="auto").facts().details["head"].startswith("plain")


@pytest.mark.parametrize("budget", [1, 40, 100, 10_000])
def test_a_budget_of_tokens_sorts_and_gives_the_order_back(budget: int) -> None:
    scorer = load(token_budget=budget, head="auto")
    sizes: list[int] = []
    original = type(scorer.scoring).score_batch

    def spy(self: Any, batch: Any, *rest: Any) -> Any:
        lengths = [len(r.prompt_token_ids) + len(r.response_token_ids) for r in batch]
        assert len(batch) == 1 or len(batch) * max(lengths) <= budget
        sizes.extend(lengths)
        return original(self, batch, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(scorer.scoring), "score_batch", spy)
        scored = score(scorer)
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == len(REQUESTS)
    assert [s.sequence_id for s in scored] == [r.sequence_id for r in REQUESTS]
    for one, other in zip(scored, score(load()), strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)
