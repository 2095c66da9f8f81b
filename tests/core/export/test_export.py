"""Exported configs: they parse, their numbers are the run's, and the frameworks' traps are kept out."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from core.export.conftest import simulate
from core.export.reading import load

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.export import available_exporters, export_config
from mismatch_probe.export.annotated import Entry, comment, render, scalar
from mismatch_probe.recommendation import recommend
from mismatch_probe.result import to_json
from mismatch_probe.weights import available_methods

Make = Callable[..., dict[str, Any]]


def test_trl_vespo_has_what_trl_insists_on(make_result: Make) -> None:
    result = make_result()
    config = load(export_config(result, "trl"))
    assert config["loss_type"] == "vespo"
    assert config["importance_sampling_level"] == "token"
    assert config["vllm_importance_sampling_mode"] == "token_truncate"
    assert config["vllm_importance_sampling_correction"] is True
    keys = ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg")
    assert [config[key] for key in keys] == [2.0, 3.0, 3.0, 2.0]
    assert config["temperature"] == 0.8 and config["cast_lm_head_to_fp32"] is False
    low, high = config["vllm_importance_sampling_clip_min"], config["vllm_importance_sampling_clip_max"]
    assert 0 < low < 1 < high


def test_thresholds_are_the_measured_ones_not_defaults(make_result: Make) -> None:
    for noise in (0.05, 0.1, 0.2):
        result = make_result(noise=noise)
        text = export_config(result, "trl", method="token_tis").text
        quantile = result["token"]["quantiles"]["log_ratio"][-2]
        cap = yaml.safe_load(text)["vllm_importance_sampling_clip_max"]
        assert math.exp(quantile) <= cap <= math.exp(quantile) * 1.01
        fitted = result["recommendation"]["candidates"]["token_tis"]["fit"]["thresholds"]["cap"]
        shown = f"cap {fitted['value']:.4g} [{fitted['ci_low']:.4g}, {fitted['ci_high']:.4g}]"
        assert fitted["ci_low"] < fitted["ci_high"] and shown in re.sub(r"\s*\n\s*#\s*", " ", text)


def test_the_cap_clears_the_noise_floor() -> None:
    result, responses = simulate(noise=0.05)
    result["legs"]["floor"]["k3"] = 0.02  # sqrt(2 * .02) = .2 nats of noise
    result["recommendation"] = to_json(recommend(result, responses, resamples=50))
    cap = load(export_config(result, "verl", method="token_tis"))["algorithm"]["rollout_correction"]
    assert cap["rollout_is_threshold"] == pytest.approx(math.exp(0.6), rel=0.01)
    assert cap["rollout_is"] == "token"


def test_verl_mean_band_is_inverted_and_centred_on_the_drift(make_result: Make) -> None:
    result = make_result(noise=0.1)
    config = load(export_config(result, "verl", method="geo_rs"))["algorithm"]["rollout_correction"]
    low, high = (float(part) for part in config["rollout_rs_threshold"].split("_"))
    assert config["rollout_rs"] == "seq_mean_k1"
    # verl tests log(low) <= -mean(log pi/mu) <= log(high): the centre is +kappa.
    kappa = result["sequence"]["length_law"]["kappa"]["value"]
    assert (math.log(low) + math.log(high)) / 2 == pytest.approx(kappa, abs=2e-6)
    means = [
        w / t
        for w, t in zip(*(result["sequence"]["scatter"][k] for k in ("log_weight", "length")), strict=True)
    ]
    kept = [math.log(low) <= -mean <= math.log(high) for mean in means]
    assert 0.97 < sum(kept) / len(kept) <= 1.0


def test_verl_bounds_stay_strings(make_result: Make) -> None:
    """Unquoted, 0.7_1.4 is the number 0.71.4 or 0.714 to a YAML 1.1 parser."""
    text = export_config(make_result(noise=0.1), "verl", method="icepop").text
    threshold = yaml.safe_load(text)["algorithm"]["rollout_correction"]["rollout_is_threshold"]
    assert isinstance(threshold, str)
    low, high = (float(part) for part in threshold.split("_"))
    assert low < 1 < high
    assert f"rollout_is_threshold='\"{threshold}\"'" in text


def test_verl_without_vespo_says_what_stands_in_for_it(make_result: Make) -> None:
    exported = export_config(make_result(), "verl")
    correction = load(exported)["algorithm"]["rollout_correction"]
    assert correction["rollout_is"] == "token" and correction["rollout_rs"] == "seq_mean_k1"
    assert "vespo" not in str(load(exported))
    assert any("no vespo" in note for note in exported.notes)
    assert "policy_loss.vespo.k_pos=2" in exported.text


def test_verl_routing_replay_follows_the_recommendation(make_result: Make) -> None:
    on = load(export_config(make_result(explained=0.8), "verl"))["actor_rollout_ref"]
    assert on["actor"]["megatron"]["router_replay"]["mode"] == "R3"
    assert on["rollout"]["enable_rollout_routing_replay"] is True
    off = load(export_config(make_result(explained=0.1), "verl"))["actor_rollout_ref"]
    assert off["rollout"]["enable_rollout_routing_replay"] is False
    dense = load(export_config(make_result(explained=None), "verl"))["actor_rollout_ref"]
    assert "enable_rollout_routing_replay" not in dense["rollout"]
    assert dense["rollout"]["calculate_log_probs"] is True
    assert dense["rollout"]["logprobs_mode"] == "processed_logprobs"
    trl = export_config(make_result(explained=0.8), "trl")
    assert any("no routing replay" in note for note in trl.notes)


@pytest.mark.parametrize("to", available_exporters())
@pytest.mark.parametrize("method", available_methods())
def test_every_method_is_written_or_refused(make_result: Make, to: str, method: str) -> None:
    result = make_result()
    try:
        exported = export_config(result, to, method=method)
    except ConfigError as error:
        assert "cannot express" in str(error) and error.hint
        return
    assert load(exported) or method in ("ppo_clip", "dapo", "dual_clip")
    assert export_config(result, to, method=method) == exported
    lines = exported.text.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"^\s*([\w.]+: \S|[\w.]+ = |--|\+?[\w.]+=[^(])", line):
            assert lines[number - 1].lstrip().startswith("#"), f"no measurement named for {line}"
    assert max(map(len, lines)) <= 160


@pytest.mark.parametrize("to", available_exporters())
def test_a_broken_or_undecided_run_is_refused_unless_forced(make_result: Make, to: str) -> None:
    broken = make_result()
    broken["data_quality"] = {
        "trusted": False,
        "checks": [{"code": "MP106", "name": "temperature", "status": "fail", "detail": "T"}],
    }
    broken["recommendation"] = recommend(broken, None)
    with pytest.raises(ConfigError, match="MP106"):
        export_config(broken, to)
    # A run without a recommendation gets token truncation, which VESPO's own recipe cannot express.
    method = "vespo" if to == "vespo" else None
    forced = export_config(broken, to, force=True, method=method)
    assert load(forced) and any("forced" in note for note in forced.notes)
    undecided = make_result()
    undecided["verdict"] = "inconclusive"
    with pytest.raises(InconclusiveError):
        export_config(undecided, to)
    assert any("inconclusive" in note for note in export_config(undecided, to, force=True).notes)
    with pytest.raises(ConfigError):
        export_config({}, to)


def test_unknown_names_are_refused_with_the_nearest(make_result: Make) -> None:
    with pytest.raises(ConfigError, match="verl"):
        export_config(make_result(), "verrl")
    with pytest.raises(ConfigError, match="vespo"):
        export_config(make_result(), "trl", method="vespoo")


def test_the_stored_recommendation_is_what_is_exported(make_result: Make) -> None:
    result = make_result()
    result["recommendation"] = {**result["recommendation"], "parameters": {"k_pos": 1.5, "lambda_pos": 2.5}}
    config = load(export_config(result, "trl"))
    assert (config["vespo_k_pos"], config["vespo_lambda_pos"], config["vespo_k_neg"]) == (1.5, 2.5, 3.0)


def test_a_goal_takes_the_correction_that_serves_it(make_result: Make) -> None:
    result = make_result(noise=0.05)
    chosen = result["recommendation"]["goals"]
    assert chosen["signal"]["chosen"] == "token_tis" != chosen["stability"]["chosen"]
    exported = export_config(result, "trl", goal="signal")
    assert (
        load(exported)["vllm_importance_sampling_mode"] == "token_truncate"
        and "For signal: token TIS" in exported.text
    )
    assert export_config(result, "trl", goal="stability") == export_config(result, "trl")
    with pytest.raises(ConfigError, match="speed"):
        export_config(result, "trl", goal="speed")
    del result["recommendation"]
    with pytest.raises(ConfigError, match="recommendation") as error:
        export_config(result, "trl")
    assert "measure" in str(error.value.hint)


def test_names_from_a_run_cannot_leave_their_comment(make_result: Make) -> None:
    result = make_result()
    result["provenance"]["model"]["name"] = "evil\nuse_vllm: false\r\x00# x"
    for to in available_exporters():
        assert load(export_config(result, to)) == load(export_config(make_result(), to))


def test_missing_measurements_leave_their_keys_out(make_result: Make) -> None:
    result = make_result()
    del result["token"]["quantiles"], result["recommendation"]["candidates"]
    config = load(export_config(result, "trl", method="token_tis"))
    assert "vllm_importance_sampling_clip_max" not in config


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        1e-5,
        3e-4,
        1e20,
        0.5,
        2.0,
        1.23456789,
        "R3",
        "0.5_5.0",
        "on",
        "1e3",
        "a: b #",
    ],
)
def test_scalars_read_back_as_they_were(value: Any) -> None:
    got = yaml.safe_load(f"key: {scalar(value)}")["key"]
    assert got == pytest.approx(value) if isinstance(value, float) else got == value
    assert type(got) is type(value)


def test_a_tree_nests_and_comments_wrap() -> None:
    text = render(
        ["head " * 60], [Entry("a.b.c", 1.0, "one"), Entry("a.b.d", "x", "two"), Entry("a.e", None, "three")]
    )
    assert yaml.safe_load(text) == {"a": {"b": {"c": 1.0, "d": "x"}, "e": None}}
    assert all(len(line) <= 100 for line in comment("word " * 100))
    with pytest.raises(ValueError, match="infinity"):
        scalar(math.inf)


def test_hydra_overrides_carry_the_same_values(make_result: Make) -> None:
    text = export_config(make_result(), "verl").text
    overrides = re.findall(r"^#   ((?:algorithm|actor_rollout_ref)\.[\w.]+)=(.*)$", text, re.M)
    config = yaml.safe_load(text)
    assert len(overrides) > 6
    for key, value in overrides:
        here: Any = config
        if "loss_mode" in key and value == "vespo":
            continue
        for part in key.split("."):
            here = here[part]
        if isinstance(here, str):
            assert value.strip("'\"") == here
        elif here is None or isinstance(here, bool):
            assert value == {None: "null", True: "true", False: "false"}[here]
        else:
            assert ast.literal_eval(value) == pytest.approx(here)
