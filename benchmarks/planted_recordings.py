"""What the planted-fault study runs on: real vLLM recordings of the embedded model, and faults put into a real forward.

`record` starts vLLM (once in bfloat16, once in float32) and samples under every rollout setting of the study. `score` reads
the same ids with transformers, after `plant` has changed the loaded model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.assets.model_facts import read_model_facts
from mismatch_probe.config.model import PromptConfig, SamplingConfig
from mismatch_probe.engines.protocol import EngineSpec, FixedSequence, PromptRequest
from mismatch_probe.engines.vllm_engine import VllmEngine
from mismatch_probe.prompts.prompt_set import load_prompts
from mismatch_probe.scorers.protocol import ScoreRequest, ScorerSpec
from mismatch_probe.scorers.transformers_scorer import TransformersScorer

MODEL = resolve_model("tiny-qwen3-moe")
FACTS = read_model_facts(MODEL.path)
BATCH, REPEAT_BATCH = 16, 3
Plant = Callable[[Any], None]


@dataclass(frozen=True)
class Recording:
    """Sequences as the rollout engine sampled and scored them.

    Attributes:
        prompts: Ids of each sequence's prompt.
        responses: Ids of each response.
        decode: Log-probabilities logged while sampling, one array a sequence.
        prefill: The engine's prefill scores of the same ids under the same sampling law.
        routes: Experts of each sequence, int16 [prompt + response - 1, layers, top_k].
        clusters: Prompt of each sequence.
        temperature: Of sampling.
    """

    prompts: list[list[int]]
    responses: list[list[int]]
    decode: list[np.ndarray]
    prefill: list[np.ndarray]
    routes: list[np.ndarray]
    clusters: np.ndarray
    temperature: float

    def take(self, rows: Sequence[int]) -> Recording:
        """Some of the sequences."""
        pick = [
            [column[i] for i in rows]
            for column in (self.prompts, self.responses, self.decode, self.prefill, self.routes)
        ]
        return Recording(*pick, self.clusters[list(rows)], self.temperature)


class PenalisedEngine(VllmEngine):
    """vLLM with a repetition penalty, which the tool itself refuses to sample with."""

    penalty = 1.0

    def _params(self, *args: Any, **kwargs: Any) -> Any:
        params = super()._params(*args, **kwargs)
        params.repetition_penalty = self.penalty
        return params


def record(folder: Path, *, num_prompts: int, seeds: Sequence[int]) -> None:
    """Records every rollout setting of the study into `folder`; clean runs with every seed, the rest with the first."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = load_prompts(PromptConfig(num_prompts=num_prompts), MODEL, FACTS, seed=0).prompts
    for dtype in ("bfloat16", "float32"):
        spec = EngineSpec(
            MODEL.path, dtype, 400, True, FACTS.num_moe_layers, FACTS.top_k, {"max_num_seqs": 64}
        )
        engine = PenalisedEngine(spec)
        settings = {f"clean-{index}": {"seed": 1000 * seed} for index, seed in enumerate(seeds)}
        if dtype == "float32":
            settings = {"float32": {}}
        else:
            settings |= {f"temperature-{t}": {"temperature": t} for t in (0.5, 0.7, 0.9, 0.97, 1.2)}
            settings |= {f"top-p-{p}": {"top_p": p} for p in (0.5, 0.8, 0.9, 0.95, 0.99)}
            settings |= {f"top-k-{k}": {"top_k": k} for k in (2, 3, 5, 20)}
            settings |= {f"penalty-{r}": {"penalty": r} for r in (1.02, 1.05, 1.1, 1.3)}
        for name, setting in settings.items():
            engine.penalty = setting.pop("penalty", 1.0)
            save(
                folder / f"{name}.npz",
                _sample(
                    engine,
                    prompts,
                    SamplingConfig(**{"samples": 2, "max_tokens": 160, "seed": 1000 * seeds[0], **setting}),
                ),
            )
            engine.penalty = 1.0
            if name.startswith("temperature"):
                _save_raw(engine, folder, name)
        engine.close()


def _sample(engine: VllmEngine, prompts: Sequence[Any], sampling: SamplingConfig) -> Recording:
    rows = [(index, prompt) for index, prompt in enumerate(prompts) for _ in range(sampling.samples)]
    requests = [
        PromptRequest(i, prompt.token_ids, seed=sampling.seed + i) for i, (_, prompt) in enumerate(rows)
    ]
    sampled = engine.sample(requests, sampling, _quiet)
    fixed = [
        FixedSequence(r.sequence_id, r.prompt_token_ids, s.response_token_ids)
        for r, s in zip(requests, sampled, strict=True)
    ]
    return Recording(
        [list(r.prompt_token_ids) for r in requests],
        [s.response_token_ids for s in sampled],
        [s.logprobs for s in sampled],
        engine.score_prefill(fixed, sampling, _quiet),
        [s.routing for s in sampled if s.routing is not None],
        np.array([index for index, _ in rows]),
        sampling.temperature,
    )  # fmt: skip


def _save_raw(engine: VllmEngine, folder: Path, name: str) -> None:
    """The same samples with raw log-probabilities: the engine's decode path read at temperature 1."""
    cold = load(folder / f"{name}.npz")
    fixed = [
        FixedSequence(i, p, r) for i, (p, r) in enumerate(zip(cold.prompts, cold.responses, strict=True))
    ]
    plain = SamplingConfig(max_tokens=160)
    raw = Recording(
        cold.prompts, cold.responses, engine.force_decode(fixed, plain, _quiet), engine.score_prefill(fixed, plain, _quiet),
        cold.routes, cold.clusters, cold.temperature,
    )  # fmt: skip
    save(folder / f"raw-{name}.npz", raw)


def score(
    recording: Recording,
    *,
    plant: Plant | None = None,
    dtype: str = "bfloat16",
    temperature: float | None = None,
    model_path: Path = MODEL.path,
    edit_ids: Callable[[list[int], list[int]], tuple[list[int], list[int]]] | None = None,
) -> dict[str, Any]:
    """Reads a recording with transformers, every leg of the training side.

    Args:
        recording: What was sampled.
        plant: Changes the loaded model; applied to the float32 reference as well.
        dtype: Of the forward.
        temperature: That logits are divided by; None takes the recording's.
        model_path: Checkpoint of the training side.
        edit_ids: Other prompt and response ids than were sampled, the response of the same length.
    """
    legs: dict[str, Any] = {}
    at = recording.temperature if temperature is None else temperature
    ids = [
        (p, r) if edit_ids is None else edit_ids(p, r)
        for p, r in zip(recording.prompts, recording.responses, strict=True)
    ]
    requests = [ScoreRequest(i, p, r) for i, (p, r) in enumerate(ids)]
    scorer = _load(model_path, dtype, plant)
    forward = scorer.score(
        requests, temperature=at, batching="forward", capture_routing=True, progress=_quiet
    )
    repeat = scorer.score(requests, temperature=at, batching="repeat", capture_routing=False, progress=_quiet)
    legs["train/forward"], legs["train/repeat"] = ([s.logprobs for s in leg] for leg in (forward, repeat))
    legs["entropy"] = [s.entropy for s in forward]
    legs["routes"] = [s.routing for s in forward]
    if edit_ids is not None:
        legs["ids"] = ids
    else:
        replayed = [ScoreRequest(i, p, r, recording.routes[i]) for i, (p, r) in enumerate(ids)]
        replay = scorer.score(
            replayed, temperature=at, batching="forward", capture_routing=False, progress=_quiet
        )
        legs["train/replay"] = [s.logprobs for s in replay]
    scorer.close()
    scorer = _load(model_path, "float32", plant)
    reference = scorer.score(
        requests, temperature=at, batching="forward", capture_routing=False, progress=_quiet
    )
    legs["train/reference"] = [s.logprobs for s in reference]
    scorer.close()
    return legs


class PlantedScorer(TransformersScorer):
    """The transformers scorer with a fault in the loaded model."""

    def plant(self, change: Plant) -> None:
        """Changes the loaded model."""
        change(self._model)


def _load(path: Path, dtype: str, plant: Plant | None) -> PlantedScorer:
    options = {"batch_size": BATCH, "repeat_batch_size": REPEAT_BATCH}
    scorer = PlantedScorer(ScorerSpec(path, dtype, FACTS.num_moe_layers, FACTS.top_k, options))
    if plant is not None:
        scorer.plant(plant)
    return scorer


def _quiet(sequences: int, tokens: int) -> None:
    return None


def save(path: Path, recording: Recording) -> None:
    """Writes a recording."""
    columns = {
        name: np.concatenate([np.asarray(row) for row in getattr(recording, name)])
        for name in ("prompts", "responses", "decode", "prefill", "routes")
    }
    np.savez(
        path, **columns, clusters=recording.clusters, temperature=recording.temperature,
        prompt_lengths=[len(row) for row in recording.prompts], lengths=[len(row) for row in recording.responses],
    )  # fmt: skip


def load(path: Path) -> Recording:
    """Reads a recording."""
    with np.load(path) as file:
        data = {name: file[name] for name in file.files}
    prompt_ends, ends = np.cumsum(data["prompt_lengths"])[:-1], np.cumsum(data["lengths"])[:-1]
    fed = np.cumsum(data["prompt_lengths"] + data["lengths"] - 1)[:-1]
    return Recording(
        [row.tolist() for row in np.split(data["prompts"], prompt_ends)],
        [row.tolist() for row in np.split(data["responses"], ends)],
        np.split(data["decode"], ends),
        np.split(data["prefill"], ends),
        np.split(data["routes"], fed),
        data["clusters"],
        float(data["temperature"]),
    )
