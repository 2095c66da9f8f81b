"""Imports from the command line: a one-sided dump of a real run's tokens is scored and gives that run's numbers."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from running import run_cli

from mismatch_probe.stages.rollout_work import read_sequences
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

GOLDEN = Path(__file__).parents[1] / "core" / "imports" / "golden"


@pytest.mark.engine
def test_one_sided_dump_gives_the_numbers_of_the_audit(embedded, tmp_path) -> None:
    """slime's rollout file, written from the tokens of an audit: scored, it measures what the audit measured."""
    audited = RunDirectory(embedded.path)
    num_parts = audited.read_manifest()["num_parts"]
    trace = Trace(audited, num_parts)
    rollout = trace.rollout
    experts, fed = trace.routes("rollout/decode")
    rows = [row for part in range(num_parts) for row in read_sequences(audited, part)]
    samples = [
        {
            "group_index": int(rollout.prompt_index[place]), "index": place,
            "tokens": [*row.prompt_token_ids, *row.response_token_ids], "response_length": len(row.response_token_ids),
            "rollout_log_probs": rollout.logprobs[rollout.offsets[place] : rollout.offsets[place + 1]].tolist(),
            "loss_mask": [1] * len(row.response_token_ids), "reward": 0.0, "weight_versions": ["0"],
            "rollout_routed_experts": experts[fed[place] : fed[place + 1]].astype(np.int32),
        }
        for place, row in enumerate(rows)
    ]  # fmt: skip
    dump, out = tmp_path / "0.pt", tmp_path / "run"
    torch.save({"rollout_id": 0, "samples": samples}, dump)

    imported = run_cli("import", "--from", "slime", str(dump), "--out", str(out))
    assert imported.status == 0, imported.stderr
    assert "next: mismatch-probe score" in imported.stdout
    # Neither the checkpoint nor the temperature is in the dump, and neither is guessed.
    assert run_cli("measure", str(out)).status == 3
    assert "--model CHECKPOINT" in run_cli("score", str(out)).stderr
    scored = ("score", str(out), "--model", "tiny-qwen3-moe")
    assert "sampling.temperature" in run_cli(*scored).stderr
    legs = 'legs=["rollout/decode","train/forward","train/replay"]'
    finished = run_cli(*scored, "--set", "sampling.temperature=1.0", "--set", legs)
    assert finished.status == 0, finished.stderr
    measured = run_cli("measure", str(out), "--format", "json")
    assert measured.status in (0, 1), measured.stderr
    again, result = Trace(RunDirectory(out), 1), json.loads((out / "result.json").read_text())

    assert np.array_equal(again.rollout.response_tokens, rollout.response_tokens)
    assert np.array_equal(again.rollout.prompt_index, rollout.prompt_index)
    # Another batching of the same forward: as far off as the audit's own repeat, which is the noise of it.
    forward, repeat = trace.logprobs("train/forward"), trace.logprobs("train/repeat")
    noise = np.mean(np.abs(repeat - forward))
    assert np.mean(np.abs(again.logprobs("train/forward") - forward)) <= 2 * noise
    for name in ("k3", "mean_abs_log_ratio"):
        assert result["token"][name]["value"] == pytest.approx(
            embedded.result["token"][name]["value"], rel=0.1
        )
    assert result["provenance"]["model"]["name"] == "tiny-qwen3-moe"
    assert result["provenance"]["sampling"]["temperature"] == 1.0
    # The rollout's routes came with the dump: agreement and replay are the audit's as well.
    agreement = [of["routing"]["set_agreement"]["value"] for of in (result, embedded.result)]
    assert agreement[0] == pytest.approx(agreement[1], abs=0.01)
    replayed, before = (t.logprobs("train/replay") - rollout.logprobs for t in (again, trace))
    assert np.mean(np.abs(replayed)) == pytest.approx(np.mean(np.abs(before)), rel=0.1)


def test_two_sided_dump_goes_through_every_view(tmp_path) -> None:
    out = tmp_path / "run"
    assert run_cli("import", "--from", "nemo-rl", str(GOLDEN / "nemo-rl"), "--out", str(out)).status == 0
    assert run_cli("measure", str(out)).status == 3  # 66 tokens are too few for a verdict
    report = run_cli("report", str(out), "--format", "markdown")
    assert report.status == 0 and "imported:nemo-rl" in report.stdout
    assert "imported:nemo-rl" in (out / "report.html").read_text()
    assert "rollout_is" in run_cli("export", str(out), "--to", "verl", "--force").stdout
    asked = (
        "--model",
        "tiny-qwen3-moe",
        "--set",
        "sampling.temperature=1.0",
        "--set",
        'legs=["rollout/decode","train/forward","train/replay"]',
    )
    replay = run_cli("score", str(out), *asked)
    assert replay.status == 2 and "cannot be taken of this imported run" in replay.stderr


def test_refusals(tmp_path) -> None:
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    hostile, out = tmp_path / "step_000001.pkl", tmp_path / "run"
    hostile.write_bytes(pickle.dumps(Payload()))
    refused = run_cli("import", "--from", "roll", str(hostile), "--out", str(out))
    assert refused.status == 2 and "refused" in refused.stderr and "nothing in it was run" in refused.stderr
    assert not (tmp_path / "ran").exists() and not out.exists()
    unknown = run_cli("import", "--from", "slim", str(hostile), "--out", str(out))
    assert unknown.status == 2 and "did you mean 'slime'" in unknown.stderr
