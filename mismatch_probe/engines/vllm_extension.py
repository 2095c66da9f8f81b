"""What runs inside vLLM's worker: capture of routed experts, forced ids, and the temperature of prefill scores.

vLLM instantiates `ProbeExtension` as a mix-in of its own worker class (`worker_extension_cls`), so `self.model_runner` is
the real runner. Nothing of vLLM is replaced; four of its methods are wrapped on the instance:

* `router._compute_routing`: keeps the gate weights of the step, so that the ids can be put in order of weight (the CPU build
  lists them in no order at all).
* `execute_model`: after a step, the experts that each router chose are filed under the request and *position* they belong
  to. Positions, not arrival order: a pre-empted request is computed twice and a chunked prefill in pieces.
* `sampler.sample`: after vLLM has drawn its token, the row of a request that carries `FORCE_KEY` is overwritten with the id
  asked for. vLLM then gathers that id's log-probability from the very distribution it sampled from, whatever the
  temperature or truncation, which a mask over the logits could not give.
* `sampler.compute_logprobs`: only while prefill scores are read, logits are first divided by the temperature and cut to the
  sampling support, because vLLM's prompt log-probabilities are always those of the raw distribution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mismatch_probe.engines.vllm_keep_sets import KeepSetProbe
from mismatch_probe.engines.vllm_layer_states import LayerStateProbe
from mismatch_probe.engines.vllm_weights import WeightProbe

if TYPE_CHECKING:
    import torch

SEQUENCE_KEY = "mismatch_probe_sequence"
FORCE_KEY = "mismatch_probe_force_ids"


class ProbeExtension(WeightProbe, LayerStateProbe, KeepSetProbe):
    """Mix-in of vLLM's worker; its methods are reached through `collective_rpc`."""

    model_runner: Any
    _prefill: tuple[float, float, int] | None = None
    _routes: dict[int, Any]
    _weights: dict[int, Any]
    _step: dict[int, Any]
    _step_weights: dict[int, Any]
    _gates: dict[int, Any]
    _scales: dict[int, float]
    _ordered: bool
    _num_layers: int

    def probe_install(self, capture_routing: bool) -> dict[str, Any]:
        """Wraps the runner and says what was found.

        Args:
            capture_routing: Whether to hook the routers.

        Returns:
            `num_moe_layers` hooked, the runner's class name, and `sampler` whether ids can be forced.
        """
        runner = self.model_runner
        sampler = getattr(runner, "sampler", None)
        can_force = hasattr(sampler, "sample") and hasattr(sampler, "compute_logprobs")
        if can_force:
            self._wrap_sampler(sampler)
        num_layers = self._hook_routers() if capture_routing else 0
        if num_layers:
            self._wrap_execute_model()
        return {"num_moe_layers": num_layers, "runner": type(runner).__name__, "sampler": can_force}

    def probe_prefill_distribution(self, temperature: float, top_p: float, top_k: int) -> None:
        """Makes prompt log-probabilities those of the sampling distribution until called with (1, 1, 0)."""
        self._prefill = None if (temperature, top_p, top_k) == (1.0, 1.0, 0) else (temperature, top_p, top_k)

    def probe_routing_is_ordered(self) -> bool:
        """Whether all ids captured so far stand in descending order of gate weight."""
        return bool(self._ordered)

    def probe_take_routing(self) -> dict[int, tuple[bytes, tuple[int, ...]]]:
        """Hands over what was captured since the last call.

        Returns:
            By sequence id: raw int16 bytes and the shape [tokens, MoE layers, top_k]; -1 where nothing was captured.
        """
        taken = {key: (array.tobytes(), array.shape) for key, array in self._routes.items()}
        self._routes = {}
        return taken

    def probe_take_gates(self) -> dict[int, tuple[bytes, tuple[int, ...]]]:
        """Hands over the gate weights that belong to `probe_take_routing`, each beside its expert.

        Returns:
            By sequence id: raw float16 bytes and the shape [tokens, MoE layers, top_k]; NaN where nothing was captured,
            and no entry at all where a router does not show its weights.
        """
        taken = {key: (array.tobytes(), array.shape) for key, array in self._weights.items()}
        self._weights = {}
        return taken

    def _wrap_sampler(self, sampler: Any) -> None:
        runner = self.model_runner
        sample, compute_logprobs = sampler.sample, sampler.compute_logprobs

        def forced_sample(logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            # The sampler works in place, so what it will draw from is found out before.
            support = self._draws(logits) if self._keeping else None
            sampled, logprobs = sample(logits, *args, **kwargs)
            if support is not None:
                self._keep_support(*support)
            for row, request_id in enumerate(runner.input_batch.req_ids):
                request = runner.requests[request_id]
                extra = getattr(request.sampling_params, "extra_args", None) or {}
                ids = extra.get(FORCE_KEY)
                position = len(request.output_token_ids)
                if ids is not None and position < len(ids):
                    sampled[row] = ids[position]
            return sampled, logprobs

        def scaled_logprobs(logits: torch.Tensor) -> Any:
            if self._prefill is None:
                return compute_logprobs(logits)
            return compute_logprobs(_sampling_logits(logits, *self._prefill))

        sampler.sample = forced_sample
        sampler.compute_logprobs = scaled_logprobs

    def _draws(self, logits: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, int, int]]] | None:
        """Truncated logits [batch, vocabulary] of the draws that a step will make, with the rows that are asked for."""
        runner, rows, params = self.model_runner, [], None
        for row, request_id in enumerate(runner.input_batch.req_ids):
            request = runner.requests[request_id]
            extra = getattr(request.sampling_params, "extra_args", None) or {}
            if SEQUENCE_KEY in extra:
                # All requests of a run sample alike.
                params = request.sampling_params
                rows.append((row, int(extra[SEQUENCE_KEY]), len(request.output_token_ids)))
        if params is None:
            return None
        top_k = max(int(params.top_k), 0)
        return _sampling_logits(logits, float(params.temperature), float(params.top_p), top_k), rows

    def _hook_routers(self) -> int:
        self._routes, self._weights = {}, {}
        self._step, self._step_weights, self._scales = {}, {}, {}
        modules = [
            module
            for module in self.model_runner.model.modules()
            if hasattr(module, "router")
            and hasattr(module.router, "set_capture_fn")
            and hasattr(module, "layer_id")
        ]
        layers = sorted({int(module.layer_id) for module in modules})
        self._gates = {}
        self._ordered = all(hasattr(module.router, "_compute_routing") for module in modules)
        for module in modules:
            # Where vLLM scales the experts' summed output, its router leaves the factor out of the weights.
            scale = float(getattr(module, "routed_scaling_factor", 1.0))
            self._scales[layers.index(int(module.layer_id))] = scale
            self._hook_router(module.router, layers.index(int(module.layer_id)))
        self._num_layers = len(layers)
        return len(layers)

    def _hook_router(self, router: Any, index: int) -> None:
        compute_routing = getattr(router, "_compute_routing", None)

        def keep_gates(*args: Any, **kwargs: Any) -> Any:
            assert compute_routing is not None  # noqa: S101 - installed only where there is one
            weights, ids = compute_routing(*args, **kwargs)
            self._gates[index] = weights
            return weights, ids

        def capture(ids: torch.Tensor) -> None:
            # Kept as they are: putting them in order is done once a step for all layers.
            gates = self._gates.pop(index, None)
            self._step[index] = ids.detach().clone()
            if gates is None or gates.shape != ids.shape:
                self._ordered = False
            else:
                self._step_weights[index] = gates.detach().clone()

        if compute_routing is not None:
            router._compute_routing = keep_gates  # noqa: SLF001 - the only place where gate weights are to be had
        router.set_capture_fn(capture)

    def _wrap_execute_model(self) -> None:
        runner = self.model_runner
        execute_model = runner.execute_model

        def captured_execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            self._step, self._step_weights = {}, {}
            result = execute_model(scheduler_output, *args, **kwargs)
            if scheduler_output.total_num_scheduled_tokens and self._step:
                self._file_step(scheduler_output)
            return result

        runner.execute_model = captured_execute_model

    def _file_step(self, scheduler_output: Any) -> None:
        import numpy as np
        import torch

        total = scheduler_output.total_num_scheduled_tokens
        if len(self._step) != self._num_layers:
            return  # a layer did not report; its rows stay -1 and the completeness check names the sequence
        # Rows beyond `total` are padding of a captured graph.
        layers = range(self._num_layers)
        ids = torch.stack([self._step[i][:total] for i in layers], dim=1)
        if len(self._step_weights) == self._num_layers:
            gates = torch.stack([self._step_weights[i][:total] for i in layers], dim=1)
            order = gates.argsort(dim=-1, descending=True, stable=True)
            ids = ids.gather(-1, order)
            scales = torch.tensor([self._scales[i] for i in layers], device=gates.device)
            weights = (scales[:, None] * gates.gather(-1, order).float()).to(
                device="cpu", dtype=torch.float16
            )
            self._file_rows(self._weights, weights.numpy(), np.float16(np.nan), scheduler_output)
        self._file_rows(
            self._routes, ids.to(device="cpu", dtype=torch.int16).numpy(), np.int16(-1), scheduler_output
        )

    def _file_rows(self, kept: dict[int, Any], rows: Any, absent: Any, scheduler_output: Any) -> None:
        """Files the rows of a step under the sequence and position that each belongs to."""
        import numpy as np

        batch = self.model_runner.input_batch
        begin = 0
        for index, request_id in enumerate(batch.req_ids):
            count = scheduler_output.num_scheduled_tokens.get(request_id, 0)
            request = self.model_runner.requests[request_id]
            extra = getattr(request.sampling_params, "extra_args", None) or {}
            sequence = extra.get(SEQUENCE_KEY)
            if sequence is not None and count:
                position = int(batch.num_computed_tokens_cpu[index])
                held = kept.get(sequence)
                if held is None or held.shape[0] < position + count:
                    grown = np.full((position + count, *rows.shape[1:]), absent, dtype=rows.dtype)
                    if held is not None:
                        grown[: held.shape[0]] = held
                    kept[sequence] = held = grown
                held[position : position + count] = rows[begin : begin + count]
            begin += count


def _sampling_logits(logits: torch.Tensor, temperature: float, top_p: float, top_k: int) -> torch.Tensor:
    import torch
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    scaled = logits.to(torch.float32)
    if temperature > 0:
        scaled = scaled / temperature
    rows = scaled.shape[0]
    k = torch.full((rows,), top_k, dtype=torch.int32, device=scaled.device) if top_k > 0 else None
    p = torch.full((rows,), top_p, dtype=torch.float32, device=scaled.device) if top_p < 1 else None
    return scaled if k is None and p is None else apply_top_k_top_p(scaled, k, p)
