"""What vLLM made of its options: the settings in force, under the names of `vllm.LLM`'s arguments."""

from __future__ import annotations

from typing import Any


def resolved_settings(config: Any) -> dict[str, Any]:
    """Settings in force, so that "the run's own setting" can be told from a change.

    Args:
        config: A `VllmConfig`, after vLLM filled in its defaults.
    """
    model, cache, scheduler = config.model_config, config.cache_config, config.scheduler_config
    return {
        "enforce_eager": bool(model.enforce_eager),
        "quantization": model.quantization,
        "model_impl": str(getattr(model.model_impl, "value", model.model_impl)),
        "enable_prefix_caching": bool(cache.enable_prefix_caching),
        "kv_cache_dtype": str(cache.cache_dtype),
        "enable_chunked_prefill": bool(scheduler.enable_chunked_prefill),
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
    }
