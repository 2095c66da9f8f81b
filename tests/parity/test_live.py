"""Drift while real trainers run: a tiny TRL GRPO run on the CPU without vLLM, and verl's own batch type and metrics."""

import numpy as np
import pytest
import torch

from mismatch_probe.live.metrics import drift_metrics
from mismatch_probe.live.trl import watch
from mismatch_probe.live.verl import mismatch_metrics

PROMPTS = ["12+7=", "30-4=", "5*6=", "81/9="]
SHIFT = 0.05


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from mismatch_probe.assets.catalog import resolve_model

    folder = tmp_path_factory.mktemp("models") / "dense"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_model("tiny-qwen3-moe").path).save_pretrained(folder)
    return folder


class Rollouts:
    """Samples with the trainer's own model, and answers with log-probabilities that are off by a known shift."""

    def __init__(self, shift):
        self.shift = shift

    def __call__(self, prompts, trainer):
        tokenizer, model = trainer.processing_class, trainer.accelerator.unwrap_model(trainer.model)
        answer = {"prompt_ids": [], "completion_ids": [], "logprobs": []}
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            with torch.no_grad():
                drawn = model.generate(
                    ids, do_sample=True, top_k=0, max_new_tokens=8, min_new_tokens=8, pad_token_id=0
                )
                log_p = torch.log_softmax(model(drawn).logits[0, ids.shape[1] - 1 : -1].float(), -1)
            completion = drawn[0, ids.shape[1] :]
            answer["prompt_ids"].append(ids[0].tolist())
            answer["completion_ids"].append(completion.tolist())
            answer["logprobs"].append((log_p.gather(-1, completion[:, None])[:, 0] - self.shift).tolist())
        return answer


def train(checkpoint, folder, *, rollout_func=None, **settings):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=4, num_generations=4, max_completion_length=8, max_steps=4,
        logging_steps=1, report_to=[], use_cpu=True, bf16=False, learning_rate=1e-2, temperature=1.0, save_strategy="no",
        disable_tqdm=True, **settings,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=str(checkpoint),
        reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 4}),
        rollout_func=rollout_func,
    )
    watch(trainer)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_a_rollout_that_is_off_by_a_shift_is_logged_as_that_shift(checkpoint, tmp_path):
    logged = train(checkpoint, tmp_path, rollout_func=Rollouts(SHIFT))
    assert len(logged) == 4
    for entry in logged:
        # Sampled by the policy of this very step, so the shift is all there is.
        assert entry["mismatch/rollout/train/k1"] == pytest.approx(-SHIFT, abs=1e-4)
        assert entry["mismatch/rollout/train/mean_abs"] == pytest.approx(SHIFT, abs=1e-4)
        assert entry["mismatch/rollout/train/log_w_mean"] == pytest.approx(8 * SHIFT, abs=1e-3)
        assert entry["mismatch/rollout/train/tokens"] == 32
        assert not any(key.startswith("mismatch/old/") for key in entry)


def test_without_a_rollout_engine_the_updates_own_drift_is_logged(checkpoint, tmp_path):
    logged = train(checkpoint, tmp_path, num_iterations=2)
    fresh, reused = logged[0], logged[1]
    # The first pass over a generation is on policy; the second comes after an optimiser step.
    assert fresh["mismatch/old/train/max_abs"] < 1e-5
    assert reused["mismatch/old/train/mean_abs"] > 1e-3
    assert not any(key.startswith("mismatch/rollout/") for key in reused)


def test_verls_batch_gives_what_verl_logs(frameworks):
    from verl import DataProto
    from verl.trainer.ppo.rollout_corr_helper import compute_offpolicy_metrics

    rng = np.random.default_rng(0)
    rollout = torch.tensor(-rng.exponential(0.7, (16, 30)))
    old = rollout + torch.tensor(rng.normal(0, 0.05, (16, 30)))
    mask = torch.tensor(np.arange(30) < rng.integers(5, 31, (16, 1))).double()
    batch = DataProto.from_dict({"rollout_log_probs": rollout, "old_log_probs": old, "response_mask": mask})
    ours, theirs = mismatch_metrics(batch), compute_offpolicy_metrics(old, rollout, mask)
    assert ours["mismatch/k1"] == pytest.approx(float(theirs["kl"]), rel=1e-5)
    assert ours["mismatch/k3"] == pytest.approx(float(theirs["k3_kl"]), rel=1e-5)
    assert ours == drift_metrics(rollout, old, mask)
