"""Simulate: sweeps, longer responses, staler weights and ablations, into the section `simulation` of result.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mismatch_probe.result import read_result, to_json
from mismatch_probe.simulate.ablation import variants
from mismatch_probe.simulate.extrapolate import ExtrapolatedPoint, extrapolate
from mismatch_probe.simulate.gaussian import gaussian_response
from mismatch_probe.simulate.respond import respond_all
from mismatch_probe.simulate.response import MethodResponse, Unavailable
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.simulate.sweep import sweep
from mismatch_probe.stages.events import Watcher
from mismatch_probe.stages.simulation_plan import SimulationPlan
from mismatch_probe.stages.simulation_staleness import Staleness, find_staleness
from mismatch_probe.stages.weights_section import read_responses, reads
from mismatch_probe.trace.parts import write_json
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace
from mismatch_probe.weights.method import WeightMethod

STAGE = "simulate"
# N of the ablations' made-up responses: fresh weights, the paper's usual 8, and its extreme.
ABLATION_STALENESS = (1, 8, 64)
_SHOWN = (
    "mean", "ess", "kept_fraction", "positive_mass", "negative_mass", "mass_ratio", "gradient_mass",
    "max_weight_share", "empty_tokens", "empty_sequences",
)  # fmt: skip
_MADE_UP = ("ess", "kept_fraction", "positive_mass", "negative_mass", "mass_ratio")


def simulate_run(run: RunDirectory, plan: SimulationPlan, watcher: Watcher) -> dict[str, Any]:
    """Simulates corrections on a measured run and writes the section `simulation` into its result.json.

    The same run and the same plan give the same bytes. The caller holds the run directory.

    Args:
        run: A measured run.
        plan: What to simulate.
        watcher: Told of progress.

    Returns:
        The content of result.json.

    Raises:
        RunDirectoryError: The run was not measured, or a part is missing or damaged.
        InconclusiveError: No token counts, or checkpoints carry no law of growth.
        ConfigError: A checkpoint that cannot be used.
    """
    result = read_result(run.result_path)
    if result["token"].get("available") is False:
        result["simulation"] = {"available": False, "reason": result["token"]["reason"]}
        write_json(run.result_path, result)
        return result
    num_parts = int(run.read_manifest()["num_parts"])
    responses = read_responses(run, Trace(run, num_parts), num_parts)
    staleness = find_staleness(run, responses, plan, watcher)
    result["simulation"] = to_json(simulation_section(responses, plan, staleness, watcher))
    write_json(run.result_path, result)
    return result


def simulation_section(
    responses: Responses, plan: SimulationPlan, staleness: Staleness, watcher: Watcher
) -> dict[str, Any]:
    """The section `simulation` of a result, from responses alone.

    Args:
        responses: What was measured.
        plan: What to simulate.
        staleness: How stale weights are simulated.
        watcher: Told of progress.
    """
    lengths = plan.lengths_for(int(responses.lengths().max()))
    few = _thinned(responses, plan)
    points = len(lengths) * len(plan.staleness) + len(_ablation_lengths(responses, lengths)) * len(
        ABLATION_STALENESS
    )
    settings = sum(int(np.prod([len(values) for values in item.grid.values()])) for item in plan.sweeps)
    total = points * plan.sequences + settings * _sequences(few)
    watcher.stage_started(STAGE, total, 0, f"{settings} settings, {points} lengths and stalenesses")
    section = {
        "reads": reads(responses),
        "sign_basis": "assumed" if responses.assumed else "advantage",
        "seed": plan.seed,
        "staleness": staleness.section(),
        "sweeps": _sweeps(few, plan, watcher),
        "extrapolation": _extrapolation(responses, plan, lengths, staleness, watcher),
        "ablations": _ablations(responses, plan, lengths, staleness, watcher),
    }
    watcher.stage_finished(STAGE)
    return section


def _ablation_lengths(responses: Responses, lengths: Sequence[int]) -> list[int]:
    """As long as measured, and as long as tried."""
    return sorted({int(responses.lengths().max()), max(lengths)})


def _sequences(responses: Responses) -> int:
    return (len(responses.offsets) - 1) // (2 if responses.assumed else 1)


def _thinned(responses: Responses, plan: SimulationPlan) -> Responses:
    """All responses, or those of a random share of the prompts where there are too many tokens to try often."""
    tokens = len(responses.train)
    if tokens <= plan.sweep_tokens or responses.num_prompts < 2:
        return responses
    order = np.random.default_rng(plan.seed).permutation(responses.num_prompts)
    keep = max(1, int(responses.num_prompts * plan.sweep_tokens / tokens))
    return responses.subset(np.sort(order[:keep]))


def _sweeps(responses: Responses, plan: SimulationPlan, watcher: Watcher) -> list[dict[str, Any]]:
    from mismatch_probe.weights import get_method

    made = []
    for item in plan.sweeps:
        default = get_method(item.method)
        points = sweep(item.method, item.grid, responses, resamples=plan.resamples, seed=plan.seed)
        made.append(
            {
                "method": item.method,
                "label": default.label,
                "grid": {key: list(values) for key, values in item.grid.items()},
                "defaults": {key: getattr(default, key) for key in item.grid},
                "num_sequences": _sequences(responses),
                "num_prompts": responses.num_prompts,
                "points": [{"values": point.values, **_shown(point.response, _SHOWN)} for point in points],
            }
        )
        watcher.stage_progress(
            STAGE, len(points) * _sequences(responses), len(points) * int(responses.mask.sum())
        )
    return made


def _extrapolation(
    responses: Responses,
    plan: SimulationPlan,
    lengths: Sequence[int],
    staleness: Staleness,
    watcher: Watcher,
) -> dict[str, Any]:
    tried = plan.readings()
    methods = {key: method for key, (_, method) in tried.items()}
    points = _made_up(methods, responses, lengths, plan.staleness, plan, staleness, watcher)
    longest = int(responses.lengths().max())
    return {
        "methods": {key: label for key, (label, _) in tried.items()},
        "lengths": list(lengths),
        "staleness": list(plan.staleness),
        "longest_measured": longest,
        "intervals": "of the simulation: how well so many made-up responses know a number",
        "points": [_point(point) for point in points],
    }


def _made_up(
    methods: Mapping[str, WeightMethod],
    responses: Responses,
    lengths: Sequence[int],
    numbers_of_updates: Sequence[int],
    plan: SimulationPlan,
    staleness: Staleness,
    watcher: Watcher,
) -> list[ExtrapolatedPoint]:
    return extrapolate(
        methods,
        responses,
        lengths=lengths,
        staleness=numbers_of_updates,
        model=staleness.model,
        updates=staleness.updates,
        sequences=plan.sequences,
        tokens=plan.tokens,
        resamples=plan.resamples,
        seed=plan.seed,
        progress=lambda sequences, tokens: watcher.stage_progress(STAGE, sequences, tokens),
    )


def _point(point: ExtrapolatedPoint) -> dict[str, Any]:
    return {
        "length": point.length,
        "staleness": point.staleness,
        "measured": point.measured,
        "drawn": point.drawn,
        "num_sequences": point.sequences,
        "mean_log_weight": point.log_weight,
        "reason": point.reason,
        "responses": {key: _shown(response, _MADE_UP) for key, response in point.responses.items()},
    }


def _ablations(
    responses: Responses,
    plan: SimulationPlan,
    lengths: Sequence[int],
    staleness: Staleness,
    watcher: Watcher,
) -> dict[str, Any]:
    """VESPO's ablations on the run itself, and on made-up responses as long as measured and as long as tried."""
    tried = variants()
    methods = {key: variant.method for key, variant in tried.items()}
    measured = respond_all(methods, responses, resamples=plan.resamples, seed=plan.seed)
    lengths = _ablation_lengths(responses, lengths)
    points = _made_up(methods, responses, lengths, ABLATION_STALENESS, plan, staleness, watcher)
    log_weight = responses.log_weight()[responses.lengths() > 0]
    return {
        "variants": {
            key: {
                "title": variant.title,
                "question": variant.question,
                "parameters": getattr(measured[key], "parameters", {}),
                **_shown(measured[key], _SHOWN),
            }
            for key, variant in tried.items()
        },
        "gaussian": _gaussian(float(log_weight.var())),
        "points": [_point(point) for point in points],
    }


def _gaussian(variance: float) -> dict[str, Any]:
    """What deployed VESPO would keep if log W were N(-s/2, s) with the measured variance s: a reference line."""
    positive, negative = gaussian_response(variance, 2.0, 3.0), gaussian_response(variance, 3.0, 2.0)
    return {
        "variance": variance,
        "positive_mass": positive.mass,
        "negative_mass": negative.mass,
        "ess": {"positive": positive.ess, "negative": negative.ess},
    }


def _shown(response: MethodResponse | Unavailable, keys: Sequence[str]) -> dict[str, Any]:
    if isinstance(response, Unavailable):
        return {"available": False, "reason": response.reason}
    return {key: getattr(response, key) for key in keys}
