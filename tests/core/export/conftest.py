"""A result of a run, with every section that exporters read."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mismatch_probe.recommendation import recommend
from mismatch_probe.result import to_json
from mismatch_probe.simulate import simulate_methods
from mismatch_probe.simulate.responses import Responses

Make = Callable[..., dict[str, Any]]


def _estimate(value: float | None, n: int = 4096) -> dict[str, Any]:
    if value is None:
        return {"value": None, "ci_low": None, "ci_high": None, "n": n, "reason": "not measured"}
    return {"value": value, "ci_low": 0.9 * value, "ci_high": 1.1 * value, "n": n}


def build(**options: Any) -> dict[str, Any]:
    """A whole result; options as of `simulate`."""
    result, responses = simulate(**options)
    result["recommendation"] = to_json(recommend(result, responses, resamples=200))
    return result


def simulate(
    *, noise: float = 0.02, length: int = 40, explained: float | None = 0.7, seed: int = 0
) -> tuple[dict[str, Any], Responses]:
    """Numbers as `measure` writes them, from simulated log-ratios N(-noise^2 / 2, noise^2) a token, and the responses.

    The recommendation is left out.
    """
    generator = np.random.default_rng(seed)
    sequences = 200
    log_ratio = generator.normal(-(noise**2) / 2, noise, sequences * length)
    rollout = np.minimum(-0.5, -0.5 - log_ratio)
    offsets = np.arange(sequences + 1) * length
    advantages = np.tile([1.0, -1.0], sequences // 2)
    log_weight = np.add.reduceat(log_ratio, offsets[:-1])
    levels = [0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1]
    k3 = float((np.expm1(log_ratio) - log_ratio).mean())
    routing: dict[str, Any] = {"available": False, "reason": "a dense model"}
    if explained is not None:
        routing = {
            "available": True,
            "token_any_flip_rate": _estimate(0.3),
            "replay": {
                "k3_forward": _estimate(k3),
                "k3_replay": _estimate(k3),
                "explained": _estimate(explained),
            },
        }
    clusters = np.arange(sequences) // 4
    responses = Responses.of(rollout + log_ratio, rollout, offsets, clusters, advantages)
    result = {
        "schema_version": 1,
        "verdict": "drift",
        "exit_code": 1,
        "verdict_sentence": "The two sides drift.",
        "findings": [],
        "provenance": {
            "run_id": "run-1",
            "model": {"name": "tiny"},
            "rollout": {"engine": "vllm"},
            "train": {"scorer": "transformers"},
            "sampling": {"temperature": 0.8, "top_p": 1.0, "top_k": -1},
        },
        "data_quality": {
            "trusted": True,
            "checks": [
                {"code": "MP109", "name": "lattice", "status": "pass", "observed": 0.01, "detail": "none"}
            ],
        },
        "legs": {
            "steps": [{"from": "train/forward", "to": "train/reference", "k3": _estimate(0.2 * k3)}],
            "floor": {"k3": k3 / 20},
        },
        "token": {
            "num_tokens": len(log_ratio),
            "exact": False,
            "k3": _estimate(k3),
            "quantiles": {"levels": levels, "log_ratio": np.quantile(log_ratio, levels).tolist()},
            "extreme": [{"tau": 2, "rate": _estimate(float((np.abs(log_ratio) > np.log(2)).mean()))}],
        },
        "sequence": {
            "num_sequences": sequences,
            "max_length": length,
            "log_weight": {
                "quantiles": {"levels": levels, "values": np.quantile(log_weight, levels).tolist()}
            },
            "length_law": {"kappa": _estimate(float(-log_ratio.mean())), "horizon_tokens": 1.15 / k3},
            "scatter": {"length": [length] * sequences, "log_weight": log_weight.tolist()},
        },
        "routing": routing,
        "weights_reads": "pi/mu",
        "weights": to_json(
            simulate_methods(
                rollout + log_ratio,
                rollout,
                offsets,
                clusters,
                advantages,
                methods=("vespo", "token_tis", "seq_tis", "gspo"),
                resamples=200,
            )
        ),
        "bars": {"replay_explained": 0.5, "sign_balance": 0.8},
    }
    return result, responses


@pytest.fixture
def make_result() -> Make:
    """Builds results; the simulation behind one set of arguments runs once."""

    def make(**options: Any) -> dict[str, Any]:
        return copy.deepcopy(_built(tuple(sorted(options.items()))))

    return make


@functools.cache
def _built(options: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return build(**dict(options))
