"""The study of routing replay on the embedded model: controls, ranking of layers, and a router that is planted noisy."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import torch

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.assets.model_facts import read_model_facts
from mismatch_probe.config.model import PromptConfig
from mismatch_probe.errors import ConfigError
from mismatch_probe.prompts.prompt_set import load_prompts
from mismatch_probe.scorers.protocol import ScoreRequest, ScorerSpec
from mismatch_probe.scorers.registry import scorers
from mismatch_probe.scorers.transformers_routing import router_modules
from mismatch_probe.stages.job import ReplayPlan
from mismatch_probe.stages.replay_section import replay_section
from mismatch_probe.stages.replay_study import plan_replay, run_replay_part
from mismatch_probe.stages.routing_section import routing_section
from mismatch_probe.trace.parts import read_routing_part, write_routing, write_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import rollout_schema, score_schema
from mismatch_probe.trace.trace import Trace

MODEL = resolve_model("tiny-qwen3-moe")
FACTS = read_model_facts(MODEL.path)
LAYERS = FACTS.num_moe_layers
SEQUENCES = 24
RESPONSE = 20


def scorer_of(dtype="bfloat16"):
    spec = ScorerSpec(MODEL.path, dtype, LAYERS, FACTS.top_k, {"batch_size": 8})
    return scorers.get("transformers").item.make(spec)


def score(scorer, requests, *, batching="forward", capture=False):
    return scorer.score(
        requests, temperature=1.0, batching=batching, capture_routing=capture, progress=lambda *_: None
    )


def sampled(scorer):
    """Sequences of the embedded model's own prompts, sampled by the model itself."""
    prompts = load_prompts(PromptConfig(num_prompts=SEQUENCES), MODEL, FACTS, seed=0).prompts
    generator = torch.manual_seed(0)
    rows = [list(prompt.token_ids) for prompt in prompts]
    with torch.inference_mode():
        for _ in range(RESPONSE):
            width = max(map(len, rows))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
            logits = scorer._model(input_ids=ids, use_cache=False).logits
            last = torch.stack([logits[index, len(row) - 1].float() for index, row in enumerate(rows)])
            for row, token in zip(
                rows, torch.multinomial(last.softmax(-1), 1, generator=generator), strict=True
            ):
                row.append(int(token))
    return [ScoreRequest(index, row[:-RESPONSE], row[-RESPONSE:]) for index, row in enumerate(rows)]


@dataclass
class Recorded:
    run: RunDirectory
    requests: list

    def trace(self):
        return Trace(self.run, 1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run whose rollout side is the unchanged model."""
    scorer = scorer_of()
    requests = sampled(scorer)
    scored = score(scorer, requests, capture=True)
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    count = len(requests)
    columns = {
        "sequence_id": range(count), "prompt_id": [str(index) for index in range(count)], "sample_index": [0] * count,
        "prompt_token_ids": [request.prompt_token_ids for request in requests],
        "response_token_ids": [request.response_token_ids for request in requests],
        "rollout_logprobs": [sequence.logprobs for sequence in scored], "finish_reason": ["length"] * count,
        **dict.fromkeys(("advantage", "reward", "weight_version", "old_logprobs", "loss_mask"), [None] * count),
    }  # fmt: skip
    write_table(run.rollout_part(0), pa.table(columns, schema=rollout_schema()))
    write_routing(
        run.routing_part("rollout/decode", 0),
        [sequence.routing for sequence in scored],
        list(range(count)),
        gates=[sequence.gates for sequence in scored],
    )
    return Recorded(run, requests)


def study(recorded, scorer, plan):
    routes = read_routing_part(recorded.run.routing_part("rollout/decode", 0))
    run_replay_part(recorded.run, 0, scorer, recorded.requests, routes, plan, temperature=1.0)
    return replay_section(recorded.trace(), [], layers=range(LAYERS))


EVERY = ReplayPlan(sequences=tuple(range(SEQUENCES)), by_layer=True)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_planted_noisy_router_is_ranked_first(recorded, layer):
    scorer = scorer_of()
    weight = router_modules(scorer._model)[layer].weight
    noise = torch.randn(weight.shape, generator=torch.manual_seed(layer)) * weight.float().std() * 0.3
    with torch.no_grad():
        weight += noise.to(weight.dtype)
    section = study(recorded, scorer, EVERY)
    ranked = sorted(section["by_layer"]["layers"], key=lambda row: row["rank"])
    assert ranked[0]["layer"] == layer
    assert ranked[0]["alone"].value > max(0.5, ranked[1]["alone"].value + 0.2)
    assert max(section["by_layer"]["layers"], key=lambda row: row["last"].value)["layer"] == layer
    # Its own routes forced on it change nothing, however noisy the router is.
    assert section["self_replay"]["exact"] and section["self_replay"]["max_abs_change"] == 0.0
    # Ids alone leave the noisy router its gate weights; with the rollout's weights nothing of the router is left.
    gates = section["gates"]
    assert gates["explained_ids_and_gates"].value > gates["explained_ids"].value > 0.5
    assert gates["explained_ids_and_gates"].value == 1.0


def test_the_unchanged_model_replays_exactly_and_has_nothing_to_explain(recorded):
    section = study(recorded, scorer_of(), EVERY)
    assert section["self_replay"]["exact"]
    assert section["self_replay"]["num_tokens"] == sum(len(r.response_token_ids) for r in recorded.requests)
    assert section["by_layer"]["joint"].value is None and section["by_layer"]["additive"] is None
    assert section["recorded"]["k3_repeat"].value >= 0


def test_recorded_routes_take_routing_out_of_the_noise_floor(recorded):
    """Another batching that flips a router: with recorded routes the flips are gone."""
    scorer = scorer_of()
    routers = router_modules(scorer._model)
    plain = routers[2].forward

    def unsteady(hidden, *args, **kwargs):
        # Rounds otherwise when sequences come one at a time, as another kernel would.
        alone = hidden.shape[0] < 64
        return plain(
            hidden * (1.02 if alone else 1.0) + (0.1 * hidden.roll(1, -1) if alone else 0.0), *args, **kwargs
        )

    routers[2].forward = unsteady
    section = study(recorded, scorer, ReplayPlan(sequences=EVERY.sequences, by_layer=False))
    r2 = section["recorded"]
    assert r2["k3_recorded"].value < r2["k3_repeat"].value
    assert r2["explained"].value == pytest.approx(1 - r2["k3_recorded"].value / r2["k3_repeat"].value)
    assert section["by_layer"]["available"] is False and "layer_replay" in section["by_layer"]["reason"]


def test_a_broken_replay_is_not_called_exact(recorded):
    scorer = scorer_of()
    router = router_modules(scorer._model)[0]
    hooked = router.forward

    def wrong(*args, **kwargs):
        logits, weights, ids = hooked(*args, **kwargs)
        forced = scorer._hooks.forced is not None
        return logits, weights * 1.01 if forced else weights, ids

    router.forward = wrong
    section = study(recorded, scorer, ReplayPlan(sequences=(1, 5), by_layer=False))
    assert not section["self_replay"]["exact"]
    assert section["self_replay"]["num_changed"] > 0 and section["self_replay"]["max_abs_change"] > 0


def test_gate_weights_and_margins_reach_the_section(recorded):
    scorer = scorer_of("float32")
    scored = score(scorer, recorded.requests, capture=True)
    ids = list(range(SEQUENCES))
    write_routing(
        recorded.run.routing_part("train/forward", 0),
        [sequence.routing for sequence in scored],
        ids,
        gates=[sequence.gates for sequence in scored],
        margins=[sequence.margins for sequence in scored],
    )
    columns = {
        "sequence_id": ids,
        "logprobs": [s.logprobs for s in scored],
        "entropy": [s.entropy for s in scored],
    }
    write_table(recorded.run.score_part("train/forward", 0), pa.table(columns, schema=score_schema()))
    section = routing_section(
        recorded.trace(), [], layers=range(LAYERS), num_experts=FACTS.num_experts, ordered=True
    )
    for layer in section["layers"]:
        assert 0 < layer["gate_distance"] < 0.05
        assert layer["margin_unflipped"] > 0
    flipped = [layer for layer in section["layers"] if layer["margin_flipped"] is not None]
    assert flipped and all(layer["margin_flipped"] < layer["margin_unflipped"] for layer in flipped)
    assert all(layer["gate_distance_flipped"] > layer["gate_distance"] for layer in flipped)
    bins = section["margins"]["bins"]
    assert sum(row["n"] for row in bins) == section["num_tokens"] * LAYERS
    assert bins[0]["flip_rate"] > bins[-1]["flip_rate"]


def test_a_run_without_a_study_says_so(tmp_path, recorded):
    for part in (recorded.run.replay_part(0),):
        part.unlink(missing_ok=True)
    section = replay_section(recorded.trace(), [], layers=range(LAYERS))
    for name in ("self_replay", "recorded", "gates", "by_layer"):
        assert section[name]["available"] is False and "replay_controls" in section[name]["reason"]


@pytest.mark.parametrize(
    ("options", "layers", "count", "by_layer"),
    [
        ({}, 4, 32, True),
        ({}, 48, 32, False),
        ({"layer_replay": 5}, 48, 5, True),
        ({"layer_replay": 0, "replay_controls": 7}, 4, 7, False),
        ({"replay_controls": 10_000, "batch_size": 4}, 4, 96, True),
    ],
)
def test_sequences_are_chosen_evenly(options, layers, count, by_layer):
    plan = plan_replay(options, num_sequences=96, num_layers=layers)
    assert plan.by_layer is by_layer
    assert len(set(plan.sequences)) == count
    gaps = np.diff((*plan.sequences, plan.sequences[0] + 96))
    assert gaps.max() - gaps.min() <= 1
    assert min(plan.sequences) >= 0 and max(plan.sequences) < 96


def test_no_sequences_no_study_and_nonsense_is_refused():
    assert plan_replay({"replay_controls": 0}, num_sequences=96, num_layers=4) is None
    with pytest.raises(ConfigError, match="layer_replay"):
        plan_replay({"layer_replay": "many"}, num_sequences=96, num_layers=4)
