"""The leg rollout/refit on a small engine of torch: what a load does to it is what the result says."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.synthetic_run import Planted, write_run
from mismatch_probe.config.model import SamplingConfig
from mismatch_probe.engines.refit import StateDigest
from mismatch_probe.engines.vllm_weights import digest, read_state
from mismatch_probe.errors import CaptureError, EngineCrashError
from mismatch_probe.stages.measure import measure_run
from mismatch_probe.stages.record_score import run_rollout_worker
from mismatch_probe.stages.refit_leg import take_refit_leg
from mismatch_probe.stages.rollout_work import read_sequences

SAMPLE = 6


class Engine:
    """A bigram model behind the engine's protocol; `fault` says what its loading does wrong."""

    def __init__(self, checkpoint, fault=None):
        self.model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Embedding(1000, 64)]),
                                          "head": torch.nn.Linear(64, 1000)})  # fmt: skip
        self.model.load_state_dict(load_file(checkpoint / "model.safetensors"))
        self.fault = fault
        self.reads = 0

    @torch.no_grad()
    def force_decode(self, sequences, sampling, progress):
        self.reads += 1
        rows = []
        for sequence in sequences:
            ids = torch.tensor([*sequence.prompt_token_ids, *sequence.response_token_ids])
            logits = self.model["head"](self.model["layers"][0](ids[:-1])) / sampling.temperature
            logprobs = logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
            rows.append(logprobs[len(sequence.prompt_token_ids) - 1 :].numpy())
        progress(len(rows), 0)
        return rows

    def load_weights(self, checkpoint):
        if self.fault == "refuses":
            raise CaptureError("no loader for this architecture")
        if self.fault == "fails":
            raise AttributeError("'Parameter' object has no attribute 'weight_loader'")
        state = load_file(checkpoint / "model.safetensors")
        if self.fault == "one layer":
            state["layers.0.weight"] = state["layers.0.weight"].roll(1, 0)
        if self.fault == "NaN":
            state["head.bias"][:] = torch.nan
        self.model.load_state_dict(state)

    def digest_state(self):
        tensors, unread = read_state(self.model)
        return StateDigest({name: digest(tensor) for name, tensor in tensors.items()}, tuple(unread))

    score_prefill = force_decode

    def facts(self): ...
    def sample(self, requests, sampling, progress): ...
    def close(self): ...
    def save_state(self, folder): ...
    def compare_state(self, folder): ...


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    layer, head = torch.nn.Embedding(1000, 64), torch.nn.Linear(64, 1000)
    state = {"layers.0.weight": layer.weight, "head.weight": head.weight, "head.bias": head.bias}
    save_file({name: tensor.detach() for name, tensor in state.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture
def run(tmp_path):
    """A run whose two sides agree well, with rollout/refit among its legs."""
    run = write_run(tmp_path / "run", Planted(1e-5, 24, prompts=24))
    manifest = run.read_manifest()
    run.write_manifest({**manifest, "legs": [*manifest["legs"], "rollout/refit"]})
    return run


def measured(run, engine, checkpoint):
    take_refit_leg(
        run, engine, checkpoint, read_sequences(run, 0)[:SAMPLE], SamplingConfig(temperature=0.9),
        forced_decode=True, progress=lambda sequences, tokens: None,
    )  # fmt: skip
    result = measure_run(run)
    return result, {item["code"]: item for item in result["findings"]}


def test_a_load_that_changes_nothing_is_exact_and_silent(run, checkpoint):
    before = measure_run(run)
    assert before["weight_sync"]["available"] is False and "not taken" in before["weight_sync"]["reason"]
    engine = Engine(checkpoint)
    result, findings = measured(run, engine, checkpoint)
    sync = result["weight_sync"]
    assert engine.reads == 2
    assert sync["exact"] and sync["change"]["max_abs"] == 0.0 and sync["weights"]["compared"] == 3
    assert (sync["num_sequences"], sync["num_tokens"]) == (SAMPLE, SAMPLE * 24)
    assert not {"MP601", "MP603"} & findings.keys()
    assert (result["verdict"], result["token"]) == (before["verdict"], before["token"])
    step = result["legs"]["steps"][-1]
    assert (step["to"], step["exact"], step["num_sequences"]) == ("rollout/refit", True, SAMPLE)


def test_a_load_that_breaks_a_layer_is_drift_that_names_the_layer(run, checkpoint):
    before = measure_run(run)
    result, findings = measured(run, Engine(checkpoint, "one layer"), checkpoint)
    sync = result["weight_sync"]
    assert not sync["exact"] and sync["change"]["mean_abs"]["value"] > 0.1
    assert (sync["modules"], sync["layers"]) == (["layers.0"], [0])
    found = findings["MP601"]
    assert found["severity"] == "error" and "layers.* (layer 0)" in found["detail"]
    assert found["observed"] == sync["change"]["mean_abs"]["value"]
    # An engine's fault beside the drift: the drift itself is what it was.
    assert before["verdict"] == "pass"
    assert (result["verdict"], result["exit_code"]) == ("drift", 1)
    assert result["token"] == before["token"] and result["legs"]["floor"] == before["legs"]["floor"]
    assert "agree" in result["verdict_sentence"] and "loading the same weights" in result["verdict_sentence"]
    assert result["recommendation"]["actions"][0]["code"] == "MP601"


def test_nan_after_a_load_has_no_number_and_is_still_the_finding(run, checkpoint):
    result, findings = measured(run, Engine(checkpoint, "NaN"), checkpoint)
    sync = result["weight_sync"]
    assert sync["num_not_finite"] == SAMPLE * 24 and sync["change"]["available"] is False
    assert findings["MP601"]["observed"] is None and "not finite" in findings["MP601"]["detail"]
    assert "head" in findings["MP601"]["detail"]
    assert not any(step["to"] == "rollout/refit" for step in result["legs"]["steps"])


@pytest.mark.parametrize(("fault", "says"), [("refuses", "no loader"), ("fails", "AttributeError")])
def test_an_engine_that_does_not_get_through_is_said_with_its_own_words(run, checkpoint, fault, says):
    result, findings = measured(run, Engine(checkpoint, fault), checkpoint)
    assert result["weight_sync"]["failed"] and says in result["weight_sync"]["reason"]
    assert "load its own checkpoint again" in findings["MP603"]["detail"]
    assert findings["MP603"]["severity"] == "warning"
    assert result["verdict"] == "pass"


def dying(*events):
    """A worker that sends events and dies."""

    def work(on_event):
        for event in events:
            on_event(event)
        raise EngineCrashError("the engine process was killed by signal 11")

    return work


def test_an_engine_that_died_of_the_load_is_the_outcome_of_the_leg(run):
    seen = []
    facts = {"event": "facts", "facts": {"engine": "bigram", "version": "1", "options": {}}}
    run_rollout_worker(run, dying({"event": "leg", "leg": "rollout/refit"}, facts), seen.append)
    assert run.read_manifest()["engines"]["rollout"]["engine"] == "bigram"
    assert len(seen) == 2
    result = measure_run(run)
    assert result["weight_sync"]["failed"] and "signal 11" in result["weight_sync"]["reason"]
    assert result["verdict"] == "pass"


def test_an_engine_that_died_before_the_load_is_an_error(run):
    with pytest.raises(EngineCrashError):
        run_rollout_worker(run, dying({"event": "leg", "leg": "rollout/decode"}), lambda event: None)
    assert not run.refit_outcome().is_file()
