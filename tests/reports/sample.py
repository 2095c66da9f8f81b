"""Results to render: synthetic log-probabilities put through the real statistics, verdict and recommendation.

Only the numbers that an engine would give are made up, so a change of what the measurement writes reaches the reports' tests.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.config.bars import load_bars
from mismatch_probe.prompts.token_classes import CLASSES
from mismatch_probe.recommendation import recommend
from mismatch_probe.result import to_json
from mismatch_probe.simulate import (
    Responses,
    StalenessModel,
    simulate_methods,
    tune_method,
    tune_vespo,
)
from mismatch_probe.stages.drift_sections import drift_sections
from mismatch_probe.stages.events import SilentWatcher
from mismatch_probe.stages.leg_section import legs_section
from mismatch_probe.stages.routing_section import routing_section
from mismatch_probe.stages.simulation import simulation_section
from mismatch_probe.stages.simulation_plan import DEFAULT_SWEEPS, SimulationPlan, SweepPlan
from mismatch_probe.stages.simulation_staleness import Staleness
from mismatch_probe.trace.parts import RoutingPart
from mismatch_probe.trace.trace import Rollout
from mismatch_probe.verdict import judge

Result = dict[str, Any]
FloatArray = npt.NDArray[np.float64]
HOSTILE = (
    "</script><img src=x onerror=alert(1)>\x1b[31mred\x1b[0m [bold]$x^2$[/bold] \u202eevil\x07 | *@octocat*"
)
NUM_LAYERS, NUM_EXPERTS, TOP_K, PROMPT_LENGTH = 16, 32, 4, 6


@dataclass(frozen=True)
class Drift:
    """How far the legs of a made-up run are apart, as standard deviations of noise in the logit, nats.

    Attributes:
        decode: rollout/prefill against rollout/decode.
        engine: train/forward against rollout/prefill.
        routing: What is added to train/forward and taken away by train/replay.
        repeat: train/repeat against train/forward.
        outliers: Share of tokens whose noise is ten times as large.
    """

    decode: float
    engine: float
    routing: float
    repeat: float
    outliers: float = 0.0


class SyntheticTrace:
    """Stands where a trace on disk would: a rollout, the log-probabilities of each leg, and routes."""

    def __init__(self, drift: Drift, *, prompts: int, samples: int, longest: int) -> None:
        rng = np.random.default_rng(20)
        count = prompts * samples
        lengths = rng.integers(max(4, longest // 8), longest, count)
        self._num_tokens = int(lengths.sum())
        logprobs = np.log(rng.beta(1.2, 0.35, self._num_tokens).clip(1e-6, 1 - 1e-7))
        advantage = np.where(rng.random(count) < 0.4, 1.0, -0.7)
        self.rollout = Rollout(
            sequence_id=np.arange(count),
            prompt_index=np.repeat(np.arange(prompts), samples),
            prompt_ids=tuple(f"p{index}" for index in range(prompts)),
            prompt_tokens=np.zeros(count * PROMPT_LENGTH, np.int32),
            prompt_offsets=np.arange(count + 1) * PROMPT_LENGTH,
            response_tokens=np.zeros(self._num_tokens, np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            logprobs=logprobs,
            advantage=advantage,
            reward=(advantage > 0).astype(float),
            finish_reason=("stop",) * count,
        )
        wide = np.where(rng.random(self._num_tokens) < drift.outliers, 10.0, 1.0)
        noise = {
            name: rng.standard_normal(self._num_tokens) * wide
            for name in ("decode", "engine", "routing", "repeat")
        }
        prefill = shift_logit(logprobs, drift.decode * noise["decode"])
        replay = shift_logit(prefill, drift.engine * noise["engine"])
        forward = shift_logit(replay, drift.routing * noise["routing"])
        self._legs = {
            "rollout/decode": logprobs,
            "rollout/prefill": prefill,
            "train/forward": forward,
            "train/replay": replay,
            "train/reference": shift_logit(forward, 0.2 * drift.engine * noise["repeat"]),
            "train/repeat": shift_logit(forward, drift.repeat * noise["repeat"]),
        }
        fed = int(lengths.sum()) + count * (PROMPT_LENGTH - 1)
        self._routes = np.argsort(rng.random((fed, NUM_LAYERS, NUM_EXPERTS)), axis=-1)[..., :TOP_K].astype(
            np.int16
        )
        self._flips = rng.random((fed, NUM_LAYERS)) < np.linspace(0.01, 0.12, NUM_LAYERS) * min(
            1.0, drift.routing * 50
        )
        self._route_offsets = np.concatenate([[0], np.cumsum(lengths + PROMPT_LENGTH - 1)])

    @property
    def recorded(self) -> Rollout:
        """Every response token: the same, since no token is masked."""
        return self.rollout

    @property
    def counted(self) -> None:
        """No loss mask."""
        return

    def logprobs(self, leg: str) -> FloatArray:
        """One leg's log-probabilities [tokens], nats."""
        return self._legs[leg]

    def entropy(self, leg: str) -> FloatArray:
        """One leg's entropies [tokens], nats: surprises of other tokens, whose mean is that of the surprises."""
        return -np.roll(self._legs[leg], 1)

    def token_classes(self) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
        """A class for each token, the last class without a token, and the names of the classes."""
        return np.arange(self._num_tokens) % (len(CLASSES) - 1), CLASSES

    def routes(self, leg: str) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
        """Expert ids [fed tokens, layers, top_k] of a leg, and the sequence offsets."""
        routes = self._routes.copy()
        if leg != "rollout/decode":
            routes[self._flips, -1] = (routes[self._flips].max(axis=-1) + 1) % NUM_EXPERTS
        return routes, self._route_offsets

    def route_parts(self, leg: str) -> Iterator[RoutingPart]:
        """The same in one part; the training side with its router margins."""
        experts, offsets = self.routes(leg)
        margins = None if leg == "rollout/decode" else np.where(self._flips, 0.01, 0.4).astype(np.float16)
        yield RoutingPart(experts, offsets, self.rollout.sequence_id, margins=margins)

    def replay_cases(self) -> dict[str, dict[int, FloatArray]]:
        """A study of replay over every fourth sequence: each layer takes its share of what routing adds."""
        forward, replay, repeat = (self._legs[f"train/{leg}"] for leg in ("forward", "replay", "repeat"))
        cases = {"own": forward, "self": forward, "repeat": repeat, "recorded": forward, "rollout": replay}
        share = np.linspace(0.0, 2.0 / NUM_LAYERS, NUM_LAYERS)
        for layer in range(NUM_LAYERS):
            cases[f"only/{layer}"] = forward + share[layer] * (replay - forward)
            cases[f"without/{layer}"] = replay - share[layer] * (replay - forward)
        offsets = self.rollout.offsets
        chosen = range(0, len(self.rollout.sequence_id), 4)
        return {
            case: {index: values[offsets[index] : offsets[index + 1]] for index in chosen}
            for case, values in cases.items()
        }


def shift_logit(logprobs: FloatArray, noise: FloatArray) -> FloatArray:
    """Add noise to the logit of the sampled token, as an engine does: unlikely tokens move more."""
    logit = logprobs - np.log(-np.expm1(logprobs))
    return np.where(noise == 0.0, logprobs, -np.logaddexp(0.0, -(logit + noise)))


def measure(
    trace: SyntheticTrace, *, moe: bool, methods: tuple[str, ...] = ("vespo", "token_tis", "seq_tis", "gspo")
) -> Result:
    """Build result.json from a trace the way the measurement does."""
    rollout = trace.rollout
    legs = [
        "rollout/decode",
        "rollout/prefill",
        "train/forward",
        "train/replay",
        "train/reference",
        "train/repeat",
    ]
    if not moe:
        legs.remove("train/replay")
    train = trace.logprobs("train/forward")
    spans = (rollout.offsets, rollout.prompt_index)
    stand_in: Any = trace
    routing: Any = {"available": False, "reason": "tiny-dense is a dense model: it has no experts"}
    if moe:
        routing = routing_section(
            stand_in, legs, layers=range(NUM_LAYERS), num_experts=NUM_EXPERTS, ordered=True
        )
    result = {
        "schema_version": 1,
        "provenance": provenance(rollout, legs, moe=moe),
        **drift_sections(stand_in, token_classes=trace.token_classes()),
        "legs": to_json(legs_section(stand_in, legs, {"available": False, "reason": "no engine ran"})),
        "routing": to_json(routing),
        "weights_reads": "train/forward over rollout/decode (pi/mu)",
        "weights": to_json(
            simulate_methods(
                train, rollout.logprobs, *spans, rollout.advantage, methods=methods, resamples=100
            )
        ),
    }
    return judged(result, responses_of(trace))


def responses_of(trace: SyntheticTrace) -> Responses:
    """The responses as corrections take them."""
    rollout = trace.rollout
    return Responses.of(
        trace.logprobs("train/forward"),
        rollout.logprobs,
        rollout.offsets,
        rollout.prompt_index,
        rollout.advantage,
    )


def simulated(trace: SyntheticTrace, *, stale: bool) -> Result:
    """Say what `simulate` and `tune` would add: a law of growth where `stale`, fresh weights alone otherwise."""
    responses = responses_of(trace)
    plan = SimulationPlan(
        methods=("vespo", "seq_tis", "gspo"),
        sweeps=(DEFAULT_SWEEPS[0], DEFAULT_SWEEPS[3], SweepPlan("gspo", {"eps_low": (1e-4, 3e-4)})),
        staleness=(1, 8),
        sequences=32,
        tokens=20_000,
        resamples=50,
    )
    staleness = Staleness(StalenessModel(1e-4, 1.2, "planted") if stale else None, None, None)
    tuned = {
        "vespo": tune_vespo(responses, budget_neg=1.1, resamples=100),
        "geo_rs": tune_method("geo_rs", responses, kept=0.9, resamples=50),
    }
    section = simulation_section(responses, plan, staleness, SilentWatcher())
    return {"simulation": to_json(section), "tuning": to_json(tuned)}


def judged(result: Result, responses: Responses) -> Result:
    """Hold a result against the shipped bars and add verdict, findings and recommendation."""
    bars = load_bars()
    verdict = judge(result, bars)
    result.update(
        verdict=verdict.name,
        exit_code=verdict.exit_code,
        verdict_sentence=verdict.sentence,
        findings=to_json(verdict.findings),
        bars=bars.model_dump(),
    )
    result["recommendation"] = to_json(recommend(result, responses, resamples=100))
    return result


def provenance(rollout: Rollout, legs: list[str], *, moe: bool) -> Result:
    """Say what would have made the numbers."""
    model = {
        "name": "tiny-qwen3-moe" if moe else "tiny-dense",
        "architecture": "Qwen3MoeForCausalLM" if moe else "Qwen3ForCausalLM",
        "num_parameters": 11_534_336,
        "num_layers": NUM_LAYERS,
        "num_moe_layers": NUM_LAYERS if moe else 0,
        "num_experts": NUM_EXPERTS if moe else None,
        "top_k": TOP_K if moe else None,
        "vocab_size": 64,
        "weights_sha256": "5c1e" * 16,
    }
    return {
        "command": "mismatch-probe audit --model tiny-qwen3-moe --rollout vllm --train transformers --out runs/embedded",
        "created_at": "2026-11-23T10:00:00Z",
        "run_id": "embedded",
        "tool_version": "0.1.0",
        "model": model,
        "train_model": dict(model),
        "rollout": {
            "engine": "vllm",
            "version": "0.32.0",
            "dtype": "bfloat16",
            "device": "cpu",
            "logprobs_mode": "processed_logprobs",
            "options": {"enforce_eager": True, "max_model_len": 512},
        },
        "train": {
            "scorer": "transformers",
            "version": "5.19.0",
            "dtype": "bfloat16",
            "device": "cpu",
            "attention": "sdpa",
            "options": {},
        },
        "sampling": {
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": -1,
            "max_tokens": 96,
            "samples": 4,
            "seed": 0,
        },
        "prompts": {
            "source": "built-in arithmetic",
            "num_prompts": len(rollout.prompt_ids),
            "sha256": "77ab" * 16,
        },
        "versions": {"python": "3.11.9", "torch": "2.13.0", "vllm": "0.32.0", "transformers": "5.19.0"},
        "num_sequences": len(rollout.sequence_id),
        "num_tokens": int(rollout.offsets[-1]),
        "num_prompt_tokens": int(rollout.prompt_offsets[-1]),
        "mean_reward": float(np.mean(rollout.reward)) if rollout.reward is not None else None,
        "has_advantages": True,
        "legs": legs,
    }


@cache
def _measured(name: str) -> Result:
    if name == "exact":
        return measure(SyntheticTrace(Drift(0, 0, 0, 0), prompts=24, samples=2, longest=64), moe=True)
    if name == "dense":
        trace = SyntheticTrace(Drift(0, 0.012, 0, 0.01), prompts=32, samples=2, longest=80)
        return {**measure(trace, moe=False), **simulated(trace, stale=False)}
    if name == "small":
        return measure(
            SyntheticTrace(Drift(0.01, 0.05, 0.03, 0.01), prompts=2, samples=1, longest=12), moe=True
        )
    if name == "extreme":
        drift = Drift(1e-4, 6.0, 0.02, 1e-3, outliers=0.05)
        return measure(SyntheticTrace(drift, prompts=24, samples=2, longest=96), moe=True)
    methods = (
        *("vespo", "token_tis", "seq_tis", "gspo", "ppo_clip", "icepop", "seq_is", "sapo"),
        *("luspo", "geo_rs", "topr", "opsm"),
    )
    drift = Drift(0.02, 0.08, 0.07, 0.015, outliers=0.004)
    trace = SyntheticTrace(drift, prompts=32, samples=4, longest=160)
    return {**measure(trace, moe=True, methods=methods), **simulated(trace, stale=True)}


def drifting() -> Result:
    """A mixture of experts that drifts, all legs, twelve methods."""
    return copy.deepcopy(_measured("drifting"))


def dense() -> Result:
    """A dense model: no routing, no replay."""
    return copy.deepcopy(_measured("dense"))


def exact() -> Result:
    """Every leg equal to the last bit."""
    return copy.deepcopy(_measured("exact"))


def inconclusive() -> Result:
    """Two short responses: too little for a verdict, no intervals to speak of."""
    return copy.deepcopy(_measured("small"))


def huge() -> Result:
    """Log-weights in the hundreds, and ratios that leave every scale."""
    result = copy.deepcopy(_measured("extreme"))
    result["token"]["k3"] = {"value": 3.1e287, "ci_low": 2e280, "ci_high": 9e300, "n": 10**12}
    total = next(step for step in result["legs"]["steps"] if step["role"] == "total")
    total["k3"] = dict(result["token"]["k3"])
    result["token"]["max_abs_log_ratio"] = 661.5
    result["sequence"]["scatter"]["log_weight"][0] = -1e150
    result["sequence"]["chi2"] = {
        "value": None,
        "ci_low": None,
        "ci_high": None,
        "n": 48,
        "reason": "it leaves float64",
    }
    return result


def hostile() -> Result:
    """Strings that would break out of a page, a terminal, a table or a figure."""
    result = drifting()
    result["verdict_sentence"] += HOSTILE
    result["provenance"]["model"]["name"] = HOSTILE
    result["provenance"]["run_id"] = HOSTILE
    result["provenance"]["command"] = f"mismatch-probe audit --model '{HOSTILE}'"
    result["provenance"]["versions"][HOSTILE] = HOSTILE
    result["provenance"]["rollout"]["options"] = {"chat_template": HOSTILE * 20}
    result["findings"][0].update(title=HOSTILE, advice=HOSTILE, detail=HOSTILE, code=HOSTILE)
    result["data_quality"]["checks"][0].update(name=HOSTILE, detail=HOSTILE)
    largest = max(result["legs"]["steps"], key=lambda step: (step["role"] == "chain", step["k3"]["value"]))
    largest.update({"from": HOSTILE, "meaning": HOSTILE * 3})
    result["legs"]["floor"]["source"] = HOSTILE
    result["weights"][HOSTILE] = {**result["weights"].pop("vespo"), "label": HOSTILE}
    result["recommendation"]["summary"] = HOSTILE
    simulation = result["simulation"]
    simulation["sweeps"][0]["label"] = HOSTILE
    simulation["extrapolation"]["methods"]["vespo"] = HOSTILE
    simulation["staleness"].update(source=HOSTILE, notes=[HOSTILE])
    simulation["ablations"]["variants"]["vespo"]["title"] = HOSTILE
    result["tuning"][HOSTILE] = result["tuning"].pop("vespo")
    result["token"]["dashboards"][0] = {
        "framework": HOSTILE,
        "name": HOSTILE,
        "value": None,
        "convention": HOSTILE,
    }
    result["token"]["token_class_names"][0] = HOSTILE
    result["token"]["k2"] = {"value": None, "n": 0, "reason": HOSTILE}
    return result


SECTIONS = ("data_quality", "provenance", "legs", "token", "sequence", "weights", "routing", "recommendation")


def absent(reason: str = "the stage was stopped") -> Result:
    """Every section not available, each with a reason of its own."""
    result = inconclusive()
    result.update({name: {"available": False, "reason": f"{name}: {reason}"} for name in SECTIONS})
    return result


def bare() -> Result:
    """The least that a result can be."""
    return {
        "schema_version": 1,
        "verdict": "inconclusive",
        "exit_code": 3,
        "verdict_sentence": "Nothing was measured.",
    }


SAMPLES: dict[str, Callable[[], Result]] = {
    "drifting": drifting,
    "dense": dense,
    "exact": exact,
    "inconclusive": inconclusive,
    "huge": huge,
    "hostile": hostile,
    "absent": absent,
    "bare": bare,
}
