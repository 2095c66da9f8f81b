"""Ranks for real: two gloo processes against one, their routes and replay, and what happens when one dies."""

import dataclasses
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from mismatch_probe.errors import ConfigError, EngineCrashError, EngineUnavailableError
from mismatch_probe.scorers.protocol import ScoreRequest, ScorerSpec
from mismatch_probe.scorers.ranks import Message, RankGroup
from mismatch_probe.scorers.registry import scorers

RNG = np.random.default_rng(0)
REQUESTS = [
    ScoreRequest(i, RNG.integers(0, 60, size=3 + i).tolist(), RNG.integers(0, 60, size=16 - 3 * i).tolist())
    for i in range(5)
]
# Three batches for two ranks: one of them has no batch of its own in the last round.
OPTIONS = {"batch_size": 2}


def make(name, folder, dtype="float32", **options):
    return scorers.get(name).item.make(ScorerSpec(folder, dtype, 2, 2, {**OPTIONS, **options}))


def score(scorer, requests=REQUESTS, capture=True, counted=None):
    return scorer.score(
        requests,
        temperature=0.8,
        batching="forward",
        capture_routing=capture,
        progress=lambda sequences, _: counted.append(sequences) if counted is not None else None,
    )


def ranks_of(launcher):
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moe")
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, moe_intermediate_size=24, num_experts=6, num_experts_per_tok=2,
        max_position_embeddings=64, initializer_range=0.3, norm_topk_prob=True,
    )  # fmt: skip
    # As trained checkpoints are: a wider one would be rounded by one side before its routers are widened.
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_fsdp_is_one_process_to_the_bit_and_replays_its_own_routes(checkpoint):
    """Mixed precision: float32 master weights, gathered as bfloat16, with routers that stay float32."""
    single = score(make("transformers", checkpoint, "bfloat16", float32_router=True))
    ranks = make("fsdp", checkpoint, "bfloat16", float32_router=True)
    try:
        counted = []
        sharded = score(ranks, counted=counted)
        for one, other in zip(single, sharded, strict=True):
            assert np.array_equal(one.logprobs, other.logprobs)
            assert np.array_equal(one.routing, other.routing)
            assert np.array_equal(one.gates, other.gates)
        replayed = [dataclasses.replace(r, routing=s.routing) for r, s in zip(REQUESTS, sharded, strict=True)]
        for one, other in zip(sharded, score(ranks, replayed, capture=False), strict=True):
            assert np.array_equal(one.logprobs, other.logprobs)
        assert sorted(counted) == [1, 2, 2]
        facts = ranks.facts()
        assert (facts.scorer, facts.dtype, facts.details["weights_dtype"]) == ("fsdp", "bfloat16", "float32")
    finally:
        ranks.close()


def test_the_error_of_a_survivor_is_not_the_cause(monkeypatch):
    """The survivor may report that nobody answers before the dead rank's line is read."""
    ours, theirs = zip(*(multiprocessing.Pipe() for _ in range(2)), strict=True)
    ranks = object.__new__(RankGroup)
    ranks._connections = {ours[0]: 0, ours[1]: 1}
    theirs[0].send(Message("error", ("RuntimeError", "Connection reset by peer", None)))
    monkeypatch.setattr("mismatch_probe.scorers.ranks.wait", lambda ready, timeout=None: list(ready)[:1])
    theirs[1].send(Message("progress", (1, 0)))
    theirs[1].close()
    with pytest.raises(EngineCrashError, match="rank 1 of 2 died"):
        list(ranks.answers("scored"))


def test_an_error_beside_ranks_that_live_is_told():
    ours, theirs = zip(*(multiprocessing.Pipe() for _ in range(2)), strict=True)
    ranks = object.__new__(RankGroup)
    ranks._connections = {ours[0]: 0, ours[1]: 1}
    theirs[0].send(Message("error", ("RuntimeError", "out of memory", None)))
    with pytest.raises(EngineCrashError, match="out of memory"):
        list(ranks.answers("scored"))


def test_tensor_parallel_agrees_and_a_dead_rank_is_an_error_without_orphans(checkpoint):
    single = score(make("transformers", checkpoint))
    ranks = make("tensor-parallel", checkpoint)
    try:
        for one, other in zip(single, score(ranks), strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            assert np.array_equal(np.sort(one.routing), np.sort(other.routing))
        pids = ranks_of(ranks.launcher_id)
        assert len(pids) == 2
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(EngineCrashError, match="of 2 died"):
            score(ranks)
    finally:
        ranks.close()
    deadline = time.monotonic() + 30
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert all(map(gone, pids))


def test_heads_that_do_not_divide_are_refused_before_anything_starts(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 9, "num_key_value_heads": 3}))
    check = scorers.get("tensor-parallel").item.check
    with pytest.raises(ConfigError, match="num_attention_heads=9 cannot be split between"):
        check(tmp_path, {})
    check(tmp_path, {"world_size": 3})
    with pytest.raises(ConfigError, match="cannot be widened"):
        check(tmp_path, {"world_size": 3, "float32_head": True})


def test_an_unknown_option_is_named(checkpoint):
    with pytest.raises(ConfigError, match="sharding"):
        scorers.get("fsdp").item.check(checkpoint, {"sharding": "full"})


def test_autocast_keeps_weights_wide_and_is_another_forward(checkpoint):
    cast = make("transformers", checkpoint, "bfloat16", autocast=True)
    assert next(cast.model.parameters()).dtype == torch.float32
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        row = REQUESTS[0]
        logits = cast.model(
            input_ids=torch.tensor([[*row.prompt_token_ids, *row.response_token_ids]])
        ).logits[0]
    assert logits.dtype == torch.bfloat16
    log_p = torch.log_softmax(logits.float() / 0.8, dim=-1)
    expected = [
        log_p[len(row.prompt_token_ids) - 1 + t, y].item() for t, y in enumerate(row.response_token_ids)
    ]
    ours = score(cast, REQUESTS[:1])[0].logprobs
    assert ours == pytest.approx(expected, abs=1e-6)
    assert not np.array_equal(
        ours, score(make("transformers", checkpoint, "bfloat16"), REQUESTS[:1])[0].logprobs
    )


def test_flash_attention_on_a_cpu_is_refused(checkpoint):
    with pytest.raises(EngineUnavailableError, match="no kernel for the CPU"):
        make("transformers", checkpoint, attention="flash_attention_2", device="cpu")


@pytest.mark.parametrize(("top_p", "top_k"), [(0.6, -1), (1.0, 3), (0.5, 8)])
def test_own_truncation_renormalises_over_what_is_kept_and_the_sampled_token(checkpoint, top_p, top_k):
    whole, cut = make("transformers", checkpoint), make("transformers", checkpoint, top_p=top_p, top_k=top_k)
    row = REQUESTS[1]
    ids = torch.tensor([[*row.prompt_token_ids, *row.response_token_ids]])
    with torch.inference_mode():
        law = torch.softmax(whole.model(input_ids=ids).logits[0] / 0.8, dim=-1).double().numpy()
    found = score(cut, [row])[0].logprobs
    outside = 0
    for t, token in enumerate(row.response_token_ids):
        p = law[len(row.prompt_token_ids) - 1 + t]
        kept, mass = [], 0.0
        order = np.argsort(-p)[: top_k if top_k > 0 else len(p)]
        total = p[order].sum()
        for index in order:
            if mass >= top_p * total:
                break
            kept.append(index)
            mass += p[index]
        outside += token not in kept
        assert found[t] == pytest.approx(np.log(p[token] / p[list({*kept, token})].sum()), abs=1e-4)
    assert outside > 0
