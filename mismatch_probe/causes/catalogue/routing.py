"""Causes in the routing of mixtures of experts, and what training adds."""

from __future__ import annotations

from mismatch_probe.causes.catalogue.cause import Cause

ROUTING = (
    Cause(
        "moe-routing", "MP670", "routing", "experts flip between the sides",
        "Tokens with flipped experts carry most of the drift; agreement falls a little from layer to layer.",
        "The leg train/replay: the share of K3 that goes when the rollout's experts are forced, with its interval.",
        "Routing replay: R3 (the rollout's routes) or R2 (the old policy's).",
        "Qwen3-30B-A3B: 10 % of the routers differ, 94 % of the tokens have a differing layer; KL 1.5e-3 to 7.5e-4 "
        "with R3 (dense "
        "8B: 6.4e-4), overhead below 3 %. Replayed ids can leave much: 0.369 to 0.139 on DeepSeek-V4 in miles. R2 "
        "is better at small "
        "staleness, R3 at larger.",
        ("2510.11370", "2512.01374", "miles#2722", "prime-rl#2808"),
        (("verl", "actor.megatron.router_replay.mode=R3 and rollout.enable_rollout_routing_replay=True (vLLM >= 0.22)"),
         ("slime", "--use-rollout-routing-replay (R3) or --use-routing-replay (R2)"),
         ("NeMo-RL", "policy.router_replay.enabled"), ("prime-rl", "trainer.enable_router_replay"),
         ("SkyRL", "moe_enable_routing_replay with enable_return_routed_experts"),
         ("TRL, OpenRLHF", "no replay: GSPO or VESPO tolerate flips better than token ratios")),
    ),
    Cause(
        "noisy-router", "MP671", "routing", "a router at low precision",
        "One layer's routers disagree far more often than its neighbours', on inputs that agree; replay removes the "
        "drift.",
        "Agreement by layer against the other layers of the run, together with the share that replay explains; or, where "
        "both sides agree but for their routers, that nothing is left with the rollout's experts forced. Between two BF16 "
        "forwards, router noise as small as BF16 rounding is not told from it.",
        "float32 routers on both sides (knob fp32 router); per-layer replay.",
        "Reports of bfloat16 routers name it as a cause; no isolated number was found.",
        ("router dtype options of prime-rl, AReaL, SkyRL, NeMo-RL",),
        (("prime-rl", "enable_fp32_router_logits=True, moe_router_dtype=float32"),
         ("Megatron-based trainers", "--moe-router-dtype fp32; no input jitter (moe_input_jitter_eps)"),
         ("vLLM", "check that the gate is not quantised (ignore it in the quantisation config)")),
    ),
    Cause(
        "tail-tokens", "MP680", "training", "a few unlikely tokens carry the drift",
        "The top 0.1 % of the tokens hold most of K3; they are unlikely under both sides.",
        "Top shares, buckets by probability and the worst tokens.",
        "Mask or truncate at token level: TIS, IcePop, DPPO.",
        "0.5 % bad updates suffice to collapse; the top 20 tokens hold 99.4-99.9 % of the mass. IcePop masks 1-2 in "
        "1000 tokens.",
        ("2602.04879", "2510.18855"),
        (("verl", "algorithm.rollout_correction.rollout_is=token with rollout_is_threshold 2.0"),
         ("TRL", "vllm_importance_sampling_mode=token_truncate"), ("slime, miles", "--use-tis with an upper bound")),
    ),
    Cause(
        "update-within-batch", "MP681", "training", "the policy itself moved",
        "Drift that grows with the number of optimiser steps since the rollout and vanishes at the first minibatch.",
        "Staleness legs: the same tokens read with k-step-old weights.",
        "Fewer minibatches per rollout, or a correction that reads pi/mu.",
        "VESPO Table 2: GRPO 54.0 to 48.6 and VESPO 70.0 to 61.8 from N=4 to N=64.",
        ("2602.10693 Table 2", "2512.01374"),
        (("verl", "ppo_mini_batch_size equal to train_batch_size to compare"),
         ("TRL", "num_iterations=1, steps_per_generation=gradient_accumulation_steps"),
         ("AReaL, slime", "lower the staleness or async depth")),
    ),
    Cause(
        "engine-pair", "MP690", "training", "everything at once",
        "Two implementations that share a checkpoint and nothing else; no single knob removes the drift.",
        "What is left after validity, weights, routing, decode path and precision have been looked at.",
        "One implementation for both sides.",
        "VeXact with bitwise equal sides: K3 = 0 and about twice the AIME24 score of a baseline that diverges near "
        "step 300. "
        "TML: collapse near step 318 without correction, KL 0 with bitwise equality.",
        ("verl-project/vexact", "Thinking Machines: Defeating nondeterminism"),
        (("verl", "use vexact"), ("vLLM with TorchTitan", "bitwise mode, 2.4 times slower on Qwen3-1.7B")),
    ),
)  # fmt: skip
