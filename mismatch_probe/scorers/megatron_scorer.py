"""The megatron scorer: megatron-core's GPT forward on one process, with weights mapped from a transformers checkpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mismatch_probe.config.options import read_options
from mismatch_probe.errors import ConfigError, EngineUnavailableError
from mismatch_probe.scorers.forward import ScoringForward
from mismatch_probe.scorers.megatron_routing import hook_megatron_routers
from mismatch_probe.scorers.megatron_weights import (
    megatron_weights,
    require_mappable,
    rotary_arguments,
    transformer_arguments,
)
from mismatch_probe.scorers.protocol import (
    ProgressCallback,
    ReplayOptions,
    ScoredSequence,
    ScorerCapabilities,
    ScoreRequest,
    ScorerFacts,
    ScorerSpec,
)
from mismatch_probe.scorers.registry import register_scorer

if TYPE_CHECKING:
    import torch


class MegatronOptions(ReplayOptions):
    """`train.options.*` of the megatron scorer.

    Attributes:
        batch_size: Sequences per forward of `train/forward`, right-padded to the longest.
        repeat_batch_size: Sequences per forward of `train/repeat`, for the noise floor.
        device: "auto" takes a CUDA device if there is one.
        layers: Which layers: megatron-core's own ("local"), or Transformer Engine's; "auto" takes the latter where it is
            installed and the device is CUDA.
        router_dtype: `moe_router_dtype`: what routers multiply in; None is the weight dtype.
    """

    batch_size: int = Field(8, ge=1)
    repeat_batch_size: int = Field(1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    layers: Literal["auto", "local", "transformer_engine"] = "auto"
    router_dtype: Literal["fp32", "fp64"] | None = None


class MegatronScorer:
    """megatron-core's `GPTModel` behind the `Scorer` protocol.

    Raises:
        ConfigError: The checkpoint cannot be mapped, or an option is wrong.
        EngineUnavailableError: The checkpoint cannot be loaded.
    """

    def __init__(self, spec: ScorerSpec) -> None:
        import torch

        check_megatron(spec.model_path, spec.options)
        self._spec = spec
        self._options = read_options(MegatronOptions, spec.options, "train.options")
        device = self._options.device
        self._device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        )
        self._engine_layers = self._options.layers == "transformer_engine" or (
            self._options.layers == "auto"
            and self._device.type == "cuda"
            and importlib.util.find_spec("transformer_engine") is not None
        )
        _start_parallel_state()
        with _without_cuda(self._device):
            self._model, vocab_size = self._build()
        self._scoring = ScoringForward(
            logits=self._forward,
            device=self._device,
            vocab_size=vocab_size,
            logit_bytes=4 if spec.dtype == "float32" else 2,
            routers=hook_megatron_routers(self._model) if spec.num_moe_layers else None,
            num_moe_layers=spec.num_moe_layers,
            top_k=spec.top_k,
        )

    def facts(self) -> ScorerFacts:
        """What was loaded."""
        import megatron.core
        import torch

        return ScorerFacts(
            scorer="megatron",
            version=str(megatron.core.__version__),
            dtype=self._spec.dtype,
            device=str(self._device),
            attention="transformer_engine" if self._engine_layers else "local",
            options=self._options.model_dump(),
            details={"torch": torch.__version__, "num_threads": torch.get_num_threads()},
        )

    def score(
        self,
        requests: Sequence[ScoreRequest],
        *,
        temperature: float,
        batching: str,
        capture_routing: bool,
        progress: ProgressCallback,
    ) -> list[ScoredSequence]:
        """See `Scorer.score`."""
        size = self._options.batch_size if batching == "forward" else self._options.repeat_batch_size
        return self._scoring.score(
            requests,
            batch_size=size,
            temperature=temperature,
            capture_routing=capture_routing,
            progress=progress,
        )

    def close(self) -> None:
        """Drops the model."""
        del self._model, self._scoring

    def _build(self) -> tuple[Any, int]:
        """The model with the checkpoint's weights, and its vocabulary; both copies are held while they are mapped."""
        import torch
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
        from megatron.core.models.gpt.gpt_model import GPTModel
        from megatron.core.transformer.transformer_config import TransformerConfig
        from transformers import AutoModelForCausalLM

        dtype = getattr(torch, self._spec.dtype)
        try:
            source = AutoModelForCausalLM.from_pretrained(
                self._spec.model_path, dtype=dtype, local_files_only=True
            )
        except (ImportError, ValueError, OSError) as error:
            raise EngineUnavailableError(
                f"transformers cannot load {self._spec.model_path.name}: {error}",
                hint="the megatron scorer takes its weights from there",
            ) from error
        given = source.config
        config = TransformerConfig(
            **transformer_arguments(given),
            params_dtype=dtype,
            bf16=dtype == torch.bfloat16,
            fp16=dtype == torch.float16,
            pipeline_dtype=dtype,
            use_cpu_initialization=True,
            perform_initialization=False,
            attention_softmax_in_fp32=True,
            # Fused kernels of Apex and Transformer Engine; the local layers have none.
            bias_dropout_fusion=False,
            bias_activation_fusion=False,
            masked_softmax_fusion=False,
            gradient_accumulation_fusion=False,
            persist_layer_norm=False,
            moe_token_dispatcher_type="allgather",  # noqa: S106 - no password
            moe_router_load_balancing_type="none",
            moe_grouped_gemm=False,
            moe_router_dtype=self._options.router_dtype,
            moe_enable_routing_replay=bool(self._spec.num_moe_layers),
        )
        layers = get_gpt_decoder_block_spec(config, self._engine_layers, normalization="RMSNorm")
        model = GPTModel(
            config=config,
            transformer_layer_spec=layers,
            vocab_size=given.vocab_size,
            max_sequence_length=given.max_position_embeddings,
            share_embeddings_and_output_weights=given.tie_word_embeddings,
            **rotary_arguments(given),
        )
        wanted = {name for name, value in model.state_dict().items() if value is not None}
        mapped = megatron_weights(source.state_dict(), given, wanted)
        answer = model.load_state_dict(mapped, strict=False)
        missing = [name for name in answer.missing_keys if not name.endswith("_extra_state")]
        if missing or answer.unexpected_keys:
            raise ConfigError(
                f"weights do not fit megatron-core: missing {missing[:3]}, unexpected {answer.unexpected_keys[:3]}",
                hint="score with --train transformers",
            )
        return model.to(device=self._device, dtype=dtype).eval(), int(given.vocab_size)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        import torch

        width = ids.shape[1]
        # True is hidden. Lines are padded on the right, where a causal mask keeps padding from all that is read.
        hidden = torch.ones(1, 1, width, width, dtype=torch.bool, device=self._device).triu(1)
        with _without_cuda(self._device):
            logits: torch.Tensor = self._model(ids, positions.clamp(min=0), hidden)
        return logits


def check_megatron(model_path: Path, options: Mapping[str, Any]) -> None:
    """Whether a checkpoint can be mapped and the options can be; loads nothing.

    Raises:
        ConfigError: One of them cannot.
    """
    read_options(MegatronOptions, options, "train.options")
    require_mappable(model_path)


def megatron_capabilities() -> ScorerCapabilities:
    """What the installed megatron-core can give."""
    try:
        found = importlib.util.find_spec("megatron.core") is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        names = ("scoring", "routing", "replay")
        return ScorerCapabilities(False, False, False, dict.fromkeys(names, "megatron-core is not installed"))
    return ScorerCapabilities(scoring=True, routing=True, replay=True, keep_sets=True)


@register_scorer(
    "megatron",
    summary="megatron-core's GPT forward, weights mapped from the checkpoint",
    capabilities=megatron_capabilities,
    check=check_megatron,
)
def make_megatron_scorer(spec: ScorerSpec) -> MegatronScorer:
    """Builds the model."""
    return MegatronScorer(spec)


def _start_parallel_state() -> None:
    """One process in every group that megatron-core asks for; nothing is drawn at random, so no generator state is kept."""
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import initialize_rng_tracker

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(1, 1)
    initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)


@contextmanager
def _without_cuda(device: torch.device) -> Iterator[None]:
    """Lets megatron-core run where there is no CUDA; with CUDA nothing is changed.

    It asks for the current CUDA device, and for a kernel of Transformer Engine that it forgets to look for.
    """
    import torch
    from megatron.core.transformer.moe import moe_utils

    if device.type == "cuda":
        yield
        return
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None
    held = torch.cuda.current_device
    torch.cuda.current_device = lambda: device
    try:
        yield
    finally:
        torch.cuda.current_device = held
