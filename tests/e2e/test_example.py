"""The training example, run as a reader would run it, and its pieces held against the tool's own readings."""

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.assets.model_facts import read_model_facts
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace
from mismatch_probe.weights import available_methods, get_method

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_with_correction.py"
LINE = re.compile(
    r"step +(\d+)  reward ([\d.]+)  ESS ([\d.]+)  mean phi (-?[\d.]+)  K3 ([\d.e+-]+)  grad norm ([\d.]+)"
)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_with_correction", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their own module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def policy():
    """The embedded model in float32, its tokenizer and its prompts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = resolve_model("tiny-qwen3-moe")
    prompts = [json.loads(line) for line in (source.path / "prompts.jsonl").read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(source.path, padding_side="left"), prompts


@pytest.fixture(scope="module")
def sampled(example, policy):
    """A rollout of the model itself, in float32: mu and pi_old are one policy in one precision."""
    model, tokenizer, prompts = policy
    torch.manual_seed(0)
    return example.sample_rollout(model, tokenizer, prompts[:8], 4)


def run_example(*arguments):
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )


def test_it_trains_prints_and_saves_checkpoints_that_differ(tmp_path):
    out = tmp_path / "checkpoints"
    done = run_example(
        "--steps", "2", "--minibatches", "2", "--prompts", "4", "--save-every", "2", "--out", str(out)
    )
    assert done.returncode == 0, done.stderr
    rows = [LINE.fullmatch(line) for line in done.stdout.splitlines()]
    assert [int(row[1]) for row in rows] == [1, 2, 3, 4]
    reward, ess, phi, k3, norm = np.array([[float(value) for value in row.groups()[1:]] for row in rows]).T
    assert ((reward >= 0) & (reward <= 1)).all()
    assert ((ess > 0) & (ess <= 1)).all()
    assert (k3 > 0).all()
    assert (norm[reward % 1 != 0] > 0).any()
    # Right after a sync only bfloat16 stands between mu and pi: weights are close to 1, VESPO's phi too.
    assert ess[0] > 0.9 and phi[0] == pytest.approx(1, abs=0.15)
    assert sorted(path.name for path in out.iterdir()) == ["step-2", "step-4"]
    hashes = {
        read_model_facts(path).weights_sha256
        for path in (*out.iterdir(), resolve_model("tiny-qwen3-moe").path)
    }
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "nothing"], "invalid choice"),
        (["--save-every", "1"], "--out"),
        (["--out", "there"], "--save-every"),
        (["--minibatches", "0"], "at least 1"),
        (["--rollout", "there", "--steps", "2"], "one rollout"),
    ],
)
def test_what_makes_no_sense_is_refused(example, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        example.parse_arguments(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_log_mu_is_what_the_model_says_of_the_sampled_tokens(example, policy, sampled):
    """Left padding, right padding and the shift by one are all in this: one of them wrong is nats off."""
    with torch.no_grad():
        again = example.response_logprobs(policy[0], sampled)
    assert (again - sampled.rollout_logprobs)[sampled.mask].abs().max() < 2e-3
    assert sampled.mask.sum(dim=1).min() > 5
    ends = sampled.ids[:, -sampled.mask.shape[1] :][sampled.mask] == policy[1].eos_token_id
    assert ends.sum() == len(sampled.ids)


@pytest.mark.parametrize("name", available_methods())
def test_every_method_gives_a_gradient_that_follows_the_advantages(example, policy, sampled, name):
    """On policy every correction is plain policy gradient, phi = 1; LUSPO alone multiplies by the length."""
    model = policy[0]
    with torch.no_grad():
        old = example.response_logprobs(model, sampled)
    model.zero_grad()
    loss, batch = example.policy_loss(model, get_method(name), sampled, old)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert torch.isfinite(loss)
    assert torch.isfinite(norm)
    assert norm > 0
    lengths = sampled.mask.sum(dim=1, keepdim=True).expand(sampled.mask.shape)
    phi = get_method(name).coefficients(batch) / (lengths if name == "luspo" else 1)
    assert phi[sampled.mask].mean().item() == pytest.approx(1, abs=0.1)


def test_training_makes_right_answers_likelier_and_wrong_ones_rarer(example, policy, sampled):
    model = copy.deepcopy(policy[0])
    with torch.no_grad():
        old = example.response_logprobs(model, sampled)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(3):
        loss, _ = example.policy_loss(model, get_method("vespo"), sampled, old)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        moved = (example.response_logprobs(model, sampled) - old).masked_fill(~sampled.mask, 0).sum(dim=1)
    assert moved[sampled.advantages > 0].mean() > 0.05
    assert moved[sampled.advantages < 0].mean() < -0.05


@pytest.mark.engine
def test_a_recorded_run_is_read_as_the_scorer_reads_it(example, policy, embedded):
    """The example's forward over the run's tokens is the leg `train/reference`, and its advantages are the run's."""
    model, tokenizer, _ = policy
    rollout = example.read_rollout(embedded.path, tokenizer.pad_token_id)
    trace = Trace(RunDirectory(embedded.path), 2)
    with torch.no_grad():
        read = example.response_logprobs(model, rollout)[rollout.mask].double().numpy()
    difference = np.abs(read - trace.logprobs("train/reference"))
    # A near-tie of two experts may fall the other way in another batch, on a token or two.
    assert np.quantile(difference, 0.99) < 1e-4
    assert rollout.rollout_logprobs[rollout.mask].numpy() == pytest.approx(trace.rollout.logprobs, abs=1e-6)
    assert rollout.advantages.numpy() == pytest.approx(trace.rollout.advantage, abs=1e-6)
