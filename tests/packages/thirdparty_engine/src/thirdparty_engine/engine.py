"""Decoding without a cache: every step is a forward over the whole sequence, one sequence at a time."""

import numpy as np

from mismatch_probe.engines.protocol import EngineCapabilities, EngineFacts, SampledSequence
from mismatch_probe.engines.registry import register_engine

WHY = "decoding without a cache keeps no record of it"


class RecomputeEngine:
    def __init__(self, spec):
        import torch
        from transformers import AutoModelForCausalLM

        self._spec = spec
        self._model = AutoModelForCausalLM.from_pretrained(
            spec.model_path, dtype=getattr(torch, spec.dtype), local_files_only=True
        ).eval()

    def facts(self):
        import transformers

        import thirdparty_engine

        return EngineFacts(
            engine="recompute",
            version=transformers.__version__,
            dtype=self._spec.dtype,
            device="cpu",
            logprobs_mode="processed_logprobs",
            options=dict(self._spec.options),
            details={"package": thirdparty_engine.__name__},
        )

    def sample(self, requests, sampling, progress):
        import torch

        stop = self._model.generation_config.eos_token_id
        sequences = []
        for request in requests:
            generator = torch.Generator().manual_seed(request.seed)
            ids, logprobs = [], []
            while len(ids) < sampling.max_tokens and (not ids or ids[-1] != stop):
                log_p = self._next(request.prompt_token_ids, ids, sampling.temperature)
                ids.append(int(torch.multinomial(log_p.exp(), 1, generator=generator)))
                logprobs.append(float(log_p[ids[-1]]))
            reason = "stop" if ids[-1] == stop else "length"
            sequences.append(SampledSequence(request.sequence_id, ids, np.float32(logprobs), reason, None))
            progress(1, 0)
        return sequences

    def force_decode(self, sequences, sampling, progress):
        scored = []
        for sequence in sequences:
            ids = list(sequence.response_token_ids)
            logprobs = [
                float(self._next(sequence.prompt_token_ids, ids[:at], sampling.temperature)[token])
                for at, token in enumerate(ids)
            ]
            scored.append(np.float32(logprobs))
            progress(1, 0)
        return scored

    def score_prefill(self, sequences, sampling, progress):
        raise RuntimeError("declared as missing, so never asked for")

    def close(self):
        del self._model

    def _next(self, prompt, ids, temperature):
        import torch

        with torch.inference_mode():
            logits = self._model(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, -1]
        return torch.log_softmax(logits.float() / temperature, -1)


def capabilities():
    return EngineCapabilities(
        sampling=True,
        prefill_scoring=False,
        forced_decode=True,
        routing=False,
        reason={"prefill_scoring": "every step of it is a prefill already", "routing": WHY},
        sampling_parameters=frozenset({"temperature"}),
    )


register_engine("recompute", summary="transformers without a cache", capabilities=capabilities)(
    RecomputeEngine
)
