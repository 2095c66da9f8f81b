"""Tune: hyperparameters fitted to a run, into tuning/<method>.json and the section `tuning` of result.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mismatch_probe.errors import ConfigError
from mismatch_probe.result import read_result, to_json
from mismatch_probe.simulate.bias import tail_of
from mismatch_probe.simulate.fitting import FITTERS
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.simulate.sums import ground_of
from mismatch_probe.simulate.tuning import tune_method, tune_vespo
from mismatch_probe.stages.weights_section import read_responses, reads
from mismatch_probe.trace.parts import write_json
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

TUNING_SCHEMA_VERSION = 1


def tune_run(
    run: RunDirectory,
    method: str,
    *,
    budget: float | None = None,
    alpha_pos: float | None = None,
    alpha_neg: float | None = None,
    budget_pos: float | None = None,
    budget_neg: float | None = None,
    keep: float | None = None,
    ess: float | None = None,
) -> dict[str, Any]:
    """Fits the hyperparameters of a correction to a scored run.

    The same run and the same options give the same bytes. The caller holds the run directory. Where the run has a
    result.json the fit is added to it.

    Args:
        run: A scored run.
        method: "vespo", or a method with thresholds.
        budget: C of both signs, for VESPO.
        alpha_pos: Power for A > 0, default 2.
        alpha_neg: Power for A < 0, default 3.
        budget_pos: C for A > 0 in place of `budget`.
        budget_neg: C for A < 0 in place of `budget`.
        keep: Share of tokens to keep, for methods with thresholds; 0.99 where neither target is given.
        ess: Effective size to reach, for methods with a cap.

    Returns:
        What was written.

    Raises:
        ConfigError: A method that cannot be tuned (the hint names those that can), options of another method, or
            one out of range.
        InconclusiveError: Nothing to fit to, or a budget that no rate can reach.
    """
    from mismatch_probe.weights import get_method

    get_method(method)
    kernel = {
        "alpha_pos": alpha_pos,
        "alpha_neg": alpha_neg,
        "budget": budget,
        "budget_pos": budget_pos,
        "budget_neg": budget_neg,
    }
    if method != "vespo":
        if method not in FITTERS:
            raise ConfigError(
                f"{method} has no thresholds to fit",
                hint=f"can be tuned: {', '.join(sorted([*FITTERS, 'vespo']))}",
            )
        _refuse(method, {key: value for key, value in kernel.items() if value is not None}, "--keep or --ess")
    else:
        given = {key: value for key, value in (("keep", keep), ("ess", ess)) if value is not None}
        _refuse(method, given, "--budget, the mean weight that the reweighted sample may have")
        if budget is None and (budget_pos is None or budget_neg is None):
            raise ConfigError(
                "vespo is tuned to a budget C on E_Q[W]",
                hint="give --budget 1, or --budget-pos and --budget-neg",
            )
    num_parts = int(run.read_manifest()["num_parts"])
    responses = read_responses(run, Trace(run, num_parts), num_parts)
    if method == "vespo":
        fitted = tune_vespo(
            responses,
            alpha_pos=2.0 if alpha_pos is None else alpha_pos,
            alpha_neg=3.0 if alpha_neg is None else alpha_neg,
            budget_pos=_either(budget_pos, budget),
            budget_neg=_either(budget_neg, budget),
        )
        fields = to_json(fitted)
    else:
        fields = {**to_json(tune_method(method, responses, kept=keep, ess=ess)), **_centre(method, responses)}
        fields.update(_middle(fields["parameters"]))
    content = {
        "schema_version": TUNING_SCHEMA_VERSION,
        "method": method,
        "reads": reads(responses),
        "k_hat": to_json(tail_of(ground_of(responses)).k_hat),
        **fields,
    }
    write_json(tuning_path(run, method), content)
    if run.result_path.is_file():
        result = read_result(run.result_path)
        result["tuning"] = {**(result.get("tuning") or {}), method: content}
        write_json(run.result_path, result)
    return content


def tuning_path(run: RunDirectory, method: str) -> Path:
    """tuning/<method>.json of a run."""
    return run.path / "tuning" / f"{method}.json"


def _refuse(method: str, given: dict[str, float], instead: str) -> None:
    if given:
        options = ", ".join(f"--{key.replace('_', '-')}" for key in given)
        raise ConfigError(f"{method} is not tuned with {options}", hint=f"give {instead}")


def _either(own: float | None, both: float | None) -> float:
    value = own if own is not None else both
    if value is None or not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"a budget must be a positive number, not {value}", hint="give --budget 1")
    return value


def _centre(method: str, responses: Responses) -> dict[str, Any]:
    """For a method of the mean log-ratio: the centre that its band should have, -kappa, nats per token."""
    if method != "geo_rs":
        return {}
    lengths = responses.lengths()
    return {"minus_kappa": float(responses.log_weight().sum() / lengths.sum())}


def _middle(parameters: dict[str, Any]) -> dict[str, Any]:
    """Log of the middle of a band, nats."""
    low, high = parameters.get("low"), parameters.get("high")
    if not isinstance(low, float) or not isinstance(high, float) or low <= 0:
        return {}
    return {"centre": (math.log(low) + math.log(high)) / 2.0}
