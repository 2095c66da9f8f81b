"""The models inside the ranks: transformers under FSDP2, and under transformers' own tensor parallelism."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from pydantic import Field

from mismatch_probe.errors import ConfigError
from mismatch_probe.scorers.transformers_routing import router_modules
from mismatch_probe.scorers.transformers_scorer import TransformersOptions, TransformersScorer


class TensorParallelOptions(TransformersOptions):
    """`train.options.*` of the tensor-parallel scorer.

    Attributes:
        world_size: Processes that share every layer.
    """

    world_size: int = Field(2, ge=1)


class FSDPOptions(TransformersOptions):
    """`train.options.*` of the FSDP2 scorer.

    Attributes:
        world_size: Processes that share the weights; each scores its own batches.
        mixed_precision: Whether master weights are float32 and cast to the configured dtype when they are gathered, as
            trainers do; otherwise they are held in that dtype.
        reshard_after_forward: Whether a layer's gathered weights are freed after its forward.
    """

    world_size: int = Field(2, ge=1)
    mixed_precision: bool = True
    reshard_after_forward: bool = True


class ShardedModel(TransformersScorer):
    """A transformers scorer whose model is shared between the ranks that load it together.

    Attributes:
        splits_batches: Whether each rank scores batches of its own; otherwise all compute the same ones together.
    """

    whole_head: ClassVar[bool] = False

    splits_batches: ClassVar[bool]


class FSDPModel(ShardedModel):
    """Weights sharded by `fully_shard`, layer by layer, gathered for each layer's forward."""

    name = "fsdp"
    options_kind = FSDPOptions
    splits_batches = True

    @property
    def _fsdp(self) -> FSDPOptions:
        return cast(FSDPOptions, self._options)

    def _weights_dtype(self) -> str:
        return "float32" if self._fsdp.mixed_precision else super()._weights_dtype()

    def _place(self, model: Any) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        layers = _decoder_layers(model)
        mesh = init_device_mesh(self._device.type, (dist.get_world_size(),))
        how: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": self._fsdp.reshard_after_forward}
        if self._fsdp.mixed_precision and self._spec.dtype != "float32":
            # An output_dtype on inner layers would hand the head another dtype than its weights have.
            how["mp_policy"] = MixedPrecisionPolicy(param_dtype=getattr(torch, self._spec.dtype))
        if self._fsdp.float32_router:
            # A group of shards has one dtype, and the policy would cast these back.
            kept = {parameter for router in router_modules(model) for parameter in router.parameters()}
            for parameter in kept:
                parameter.data = parameter.data.to(self._device)
            how["ignored_params"] = kept
        for layer in layers:
            fully_shard(layer, **how)
        fully_shard(model, **how)


class TensorParallelModel(ShardedModel):
    """Every layer split between the ranks by the plan that transformers has for the architecture."""

    name = "tensor-parallel"
    options_kind = TensorParallelOptions
    splits_batches = False

    def _load_options(self) -> dict[str, Any]:
        from transformers.distributed import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_plan="auto")}

    def _place(self, model: Any) -> None:
        """Nothing to do: the shards were loaded where they compute."""

    def _forward(self, ids: Any, positions: Any) -> Any:
        logits = super()._forward(ids, positions)
        return logits.full_tensor() if hasattr(logits, "full_tensor") else logits


SHARDED: dict[str, type[ShardedModel]] = {kind.name: kind for kind in (FSDPModel, TensorParallelModel)}


def _decoder_layers(model: Any) -> list[Any]:
    """The decoder layers, which transformers lists as what may not be split between devices."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} does not name its decoder layers", hint="score with --train transformers"
        )
    return layers
