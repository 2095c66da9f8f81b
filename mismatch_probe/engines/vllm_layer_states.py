"""Hidden states inside vLLM's worker, by hooks on the modules of its own model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mismatch_probe.engines.layer_sites import EMBEDDING, EXPERTS, FINAL_NORM, ROUTER, SITES, STREAM, key
from mismatch_probe.engines.protocol import FixedSequence
from mismatch_probe.errors import CaptureError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

_FINAL_NORMS = ("norm", "final_layernorm", "ln_f")


class LayerStateProbe:
    """Part of the mix-in of vLLM's worker; its methods are reached through `collective_rpc`.

    vLLM's layers pass the residual stream in two parts, `hidden_states` and `residual`, and add them inside the next norm,
    in place. So every input is copied before the module runs, and a stream is the sum of its two parts in the model's dtype,
    which is what the fused norm computes.
    """

    model_runner: Any
    _states: dict[str, list[Any]] | None = None
    _hooked = False

    def probe_hook_layers(self) -> int:
        """Hooks every site once; the number of decoder layers, 0 where there are none of a known kind."""
        root, layers = _decoder(self.model_runner.model)
        if root is None or self._hooked:
            return len(layers)
        self._hooked = True
        for index, layer in enumerate(layers):
            self._hook(layer, key(index, STREAM, ""), stream=True)
            modules = dict(layer.named_modules())
            is_moe = any(path in modules for path in ROUTER.rollout)
            for site in SITES:
                if site is EXPERTS and not is_moe:
                    continue
                path = next((path for path in site.rollout if path in modules), None)
                if path is not None:
                    self._hook(modules[path], key(index, site.name, ""), stream=False)
        norm = next((getattr(root, name) for name in _FINAL_NORMS if hasattr(root, name)), None)
        if norm is not None:
            self._hook(norm, f"{FINAL_NORM}.", stream=False)
        embedding = getattr(root, "embed_tokens", None)
        if embedding is not None:
            embedding.register_forward_hook(
                lambda _module, _args, output: self._keep(f"{EMBEDDING}.out", output)
            )
        return len(layers)

    def probe_begin_states(self) -> None:
        """Keeps the states of what is fed from now on."""
        self._states = {}

    def probe_write_states(self, path: str, num_tokens: int, routes: Any = None) -> list[str]:
        """Writes what was kept and stops keeping.

        Args:
            path: The file to write.
            num_tokens: Tokens that were fed.
            routes: int16 [tokens, layers, top_k] to write beside them, or None.

        Returns:
            States that do not have a row for every token.
        """
        import torch
        from safetensors.torch import save_file

        held, self._states = self._states or {}, None
        joined = {name: torch.cat(pieces).contiguous() for name, pieces in held.items()}
        wrong = [name for name, rows in joined.items() if len(rows) != num_tokens]
        if routes is not None:
            joined["routes"] = torch.tensor(routes)
        if not wrong and joined and getattr(self, "rank", 0) == 0:
            save_file(joined, path)
        return wrong if joined else ["all"]

    def _hook(self, module: Any, name: str, *, stream: bool) -> None:
        def before(_module: Any, args: Any, kwargs: Any) -> None:
            if self._states is not None:
                self._keep(f"{name}in", _summed(_inputs(args, kwargs)))

        def after(_module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
            if self._states is not None:
                parts = output if isinstance(output, tuple) else (output,)
                self._keep(f"{name}out", _summed(parts[:2]) if stream else parts[0])

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after, with_kwargs=True)

    def _keep(self, name: str, rows: torch.Tensor | None) -> None:
        if self._states is not None and rows is not None and rows.dim() > 1:
            # Heads side by side: [tokens, width], whatever shape the module works in.
            self._states.setdefault(name, []).append(rows.detach().flatten(1).to("cpu", copy=True))


class VllmLayerStates:
    """The part of the vLLM engine that hands over hidden states; see `LayerStateEngine`."""

    _llm: Any
    _take_hooked_routes: Callable[[], dict[int, npt.NDArray[np.int16]]]
    _native_routing: bool

    def write_layer_states(self, sequences: Sequence[FixedSequence], folder: Path) -> None:
        """See `LayerStateEngine.write_layer_states`; one sequence at a time, so that the rows of a step are its tokens."""
        from vllm import SamplingParams

        from mismatch_probe.engines.vllm_extension import SEQUENCE_KEY

        layers = self._llm.llm_engine.vllm_config.model_config.hf_text_config.num_hidden_layers
        hooked = self._llm.collective_rpc("probe_hook_layers")
        if any(count != layers for count in hooked):
            raise CaptureError(
                f"{max(hooked)} decoder layers of the engine's model could be hooked, the checkpoint has {layers}",
                hint="pipeline parallelism is not supported here; report this model's architecture otherwise",
            )
        for sequence in sequences:
            ids = [*sequence.prompt_token_ids, *sequence.response_token_ids]
            self._llm.collective_rpc("probe_begin_states")
            params = SamplingParams(
                temperature=0.0,
                max_tokens=1,
                detokenize=False,
                extra_args={SEQUENCE_KEY: sequence.sequence_id},
            )
            output = self._llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)[0]
            routes = (
                output.outputs[0].routed_experts
                if self._native_routing
                else self._take_hooked_routes().get(sequence.sequence_id)
            )
            path = str(folder / f"{sequence.sequence_id}.safetensors")
            # Every worker ends its capture; the first one writes: the stream is the same on all of them.
            missing = self._llm.collective_rpc("probe_write_states", args=(path, len(ids), routes))[0]
            if missing:
                raise CaptureError(
                    f"hidden states of sequence {sequence.sequence_id} are incomplete ({missing[0]}, ...)",
                    hint="set rollout.options.enforce_eager=true and enable_prefix_caching=false",
                )


def _decoder(model: Any) -> tuple[Any, list[Any]]:
    """The module that holds the decoder layers, and they; (None, []) where there is none."""
    import torch

    for _, module in sorted(model.named_modules(), key=lambda item: item[0].count(".")):
        layers = getattr(module, "layers", None)
        if isinstance(layers, torch.nn.ModuleList) and len(layers) and hasattr(layers[0], "self_attn"):
            return module, list(layers)
    return None, []


def _inputs(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Hidden states and residual of a call, wherever they stand among its arguments."""
    import torch

    if "hidden_states" in kwargs:
        return kwargs["hidden_states"], kwargs.get("residual")
    found = [value for value in args if isinstance(value, torch.Tensor) and value.is_floating_point()]
    return tuple(found[:2])


def _summed(parts: Sequence[Any]) -> torch.Tensor | None:
    """Hidden states and residual added, in their dtype."""
    first = parts[0] if parts else None
    second = parts[1] if len(parts) > 1 else None
    if first is None or second is None or first.shape != second.shape:
        return first
    total: torch.Tensor = first + second
    return total
