"""Planted faults on real engines: can the diagnosis name them?

python -m benchmarks.planted_faults record --work runs/planted      # vLLM, once
python -m benchmarks.planted_faults score --work runs/planted       # transformers, every fault and severity
python -m benchmarks.planted_faults report --work runs/planted      # diagnosis, confusion matrix, picture
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import planted_changes as change
from benchmarks import planted_recordings as recordings
from benchmarks import planted_report

PROMPTS = 48
IMAGE = Path(__file__).parents[1] / "docs" / "images" / "diagnosis-confusion.png"


@dataclass
class Case:
    """One fault at one severity, as read.

    Attributes:
        cause: Id of the planted cause, or "clean".
        severity: What was planted, in words.
        recording: The rollout side.
        legs: The training side, see `planted_recordings.score`.
        clean: A reading without the fault.
        checkpoint: Folder of the training side's checkpoint, where it is another one than the rollout's.
        clean_rollout: Rollout log-probabilities that `clean` belongs to, where they are of other tokens; None where `clean`
            reads the very tokens of this case.
    """

    cause: str
    severity: str
    recording: recordings.Recording
    legs: dict[str, Any]
    clean: dict[str, Any] | None = None
    checkpoint: Path | None = None
    clean_rollout: list[np.ndarray] | None = None

    @property
    def clean_is_paired(self) -> bool:
        """Whether `clean` reads the very tokens of this case."""
        return self.clean_rollout is None

    def take(self, rows: Sequence[int]) -> Case:
        """Some of the sequences."""
        legs = {name: [values[i] for i in rows] for name, values in self.legs.items()}
        return replace(self, recording=self.recording.take(rows), legs=legs)


@dataclass(frozen=True)
class Study:
    """Which prompts, seeds and severities.

    Attributes:
        seeds: Of sampling.
        first_prompt: Of the 48 that faults are planted on.
        rate: Learning rate of the stale steps.
        scale: Of low-rank deltas and router noise.
        layers: That single-layer faults go into, in order.
        rope: Factors of the rotary base.
        epsilons: Of the norms.
    """

    seeds: tuple[int, ...]
    first_prompt: int
    rate: float
    scale: float
    layers: tuple[int, int, int, int]
    rope: tuple[float, ...]
    epsilons: tuple[float, ...]


DESIGN = Study((0, 1, 2, 3), 0, 3e-5, 1.0, (0, 1, 2, 3), (1.5, 10.0, 100.0), (1e-5, 1e-3, 1e-2))
"""The rules' thresholds were chosen on these."""
HELD_OUT = Study((11, 12, 13, 14), 64, 2e-5, 1.4, (3, 2, 1, 0), (2.0, 5.0, 30.0), (3e-5, 3e-4, 3e-3))
"""Run once, after every threshold stood."""


@dataclass(frozen=True)
class Weights:
    """A fault that lives in the checkpoint of the training side."""

    cause: str
    severity: str
    plant: recordings.Plant


def weight_faults(base: recordings.Recording, study: Study) -> list[Weights]:
    """Faults of weights and constants; their checkpoints are written out and read back."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mismatch_probe.config.model import PromptConfig
    from mismatch_probe.prompts.prompt_set import load_prompts

    model = AutoModelForCausalLM.from_pretrained(recordings.MODEL.path, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(recordings.MODEL.path)
    prompts = load_prompts(PromptConfig(), recordings.MODEL, recordings.FACTS, seed=0).prompts
    answers = [prompts[cluster].answer or "" for cluster in base.clusters]
    stepped = {
        steps: change.train_steps(model, base, answers, tokenizer, steps=steps, rate=study.rate)
        for steps in (1, 4, 16, 64)
    }
    faults = [
        Weights("stale-weights", f"{k} optimiser steps", change.take_all(m)) for k, m in stepped.items()
    ]
    faults += [
        Weights("unsynchronised-layer", f"layer {layer}, {k} steps", change.take_layer(stepped[k], layer))
        for layer, k in zip(study.layers, (64, 16, 64, 64), strict=True)
    ]
    faults += [
        Weights(
            "missing-low-rank-delta",
            f"rank {r}, {study.scale * s:g} of the norm",
            change.add_low_rank(r, study.scale * s),
        )
        for r, s in ((2, 0.02), (4, 0.05), (4, 0.2))
    ]
    faults += [
        Weights("fp8-weights", f"one scale a {g}", change.round_weights("fp8", g)) for g in ("tensor", "row")
    ]
    faults += [
        Weights("int8-weights", f"one scale a {g}", change.round_weights("int8", g))
        for g in ("tensor", "row")
    ]
    faults += [
        Weights("permuted-experts", name, change.permute_experts(layers, moved))
        for name, layers, moved in (
            ("2 of 16 in layer 1", (1,), 2),
            ("all in layer 3", (3,), 16),
            ("all in every layer", range(4), 16),
        )
    ]
    faults += [Weights("rope-base", f"{f:g} times", change.rope_base(f)) for f in study.rope]
    faults += [Weights("norm-epsilon", f"{e:g}", change.norm_epsilon(e)) for e in study.epsilons]
    return faults


def score_cases(work: Path, only: str | None, study: Study) -> Iterator[Case]:
    """Reads every case that needs a forward."""
    rec = work / "recordings"
    rows = range(2 * study.first_prompt, 2 * (study.first_prompt + PROMPTS))
    base = recordings.load(rec / "clean-0.npz").take(rows)
    clean = recordings.score(base)

    def wanted(cause: str) -> bool:
        return only is None or only == cause

    for path in sorted(rec.glob("clean-*.npz")):
        whole = recordings.load(path)
        if wanted("clean"):
            yield Case("clean", path.stem, whole, recordings.score(whole))
    for fault in weight_faults(base, study) if only is None or not wanted("clean") else []:
        if wanted(fault.cause):
            folder = (
                work
                / "checkpoints"
                / f"{fault.cause}-{fault.severity}".replace(" ", "-").replace(",", "").replace("%", "")
            )
            write_checkpoint(fault.plant, folder)
            yield Case(
                fault.cause, fault.severity, base, recordings.score(base, model_path=folder), clean, folder
            )
    runtime = [
        (
            "noisy-router",
            f"layer {layers[0] if len(layers) == 1 else 'all'}, noise {study.scale * noise:g}",
            change.noisy_router(layers, study.scale * noise),
        )
        for layers, noise in (
            *zip(((layer,) for layer in study.layers), (0.01, 0.05, 0.3, 0.1), strict=True),
            (range(4), 0.1),
        )
    ]
    for cause, severity, plant in runtime:
        if wanted(cause):
            yield Case(cause, severity, base, recordings.score(base, plant=plant), clean)
    if wanted("noisy-router"):
        full = recordings.load(rec / "float32.npz").take(rows)
        fine = recordings.score(full, dtype="float32")
        for layers in (range(4), study.layers[:1]):
            severity = f"layer {'all' if len(layers) > 1 else layers[0]}, BF16 in a float32 pair"
            plant = change.bfloat16_router(layers)
            yield Case(
                "noisy-router",
                severity,
                full,
                recordings.score(full, dtype="float32", plant=plant),
                fine,
            )
    tokenizer = _tokenizer()
    edits = [("bos-dropped", "every prompt", change.drop_bos)]
    edits += [
        ("retokenised-text", f"{s:.0%} of the responses", change.retokenise(tokenizer, s))
        for s in (1.0, 0.3, 0.1)
    ]
    for cause, severity, edit in edits:
        if wanted(cause):
            yield Case(cause, severity, base, recordings.score(base, edit_ids=edit), clean)
    if wanted("bf16-head"):
        full = recordings.load(rec / "float32.npz").take(rows)
        fine = recordings.score(full, dtype="float32")
        yield Case("clean", "float32 on both sides", full, fine)
        yield Case(
            "bf16-head",
            "training side",
            full,
            recordings.score(full, dtype="float32", plant=change.bfloat16_head),
            fine,
        )
    for t in (0.97, 0.9, 0.7, 0.5, 1.2):
        if wanted("temperature"):
            cold = recordings.load(rec / f"temperature-{t}.npz").take(rows)
            fine = recordings.score(cold)
            yield Case("clean", f"temperature {t} on both sides", cold, fine)
            yield Case("temperature", f"{t} not applied", cold, recordings.score(cold, temperature=1.0), fine)
        if wanted("raw-logprobs") and t != 1.2:
            raw = recordings.load(rec / f"raw-temperature-{t}.npz").take(rows)
            yield Case(
                "raw-logprobs",
                f"at temperature {t}",
                raw,
                recordings.score(raw),
                clean,
                clean_rollout=base.decode,
            )
    names = [("truncated-sampling", f"top-p-{p}") for p in (0.99, 0.95, 0.9, 0.8, 0.5)]
    names += [("truncated-sampling", f"top-k-{k}") for k in (20, 5, 3, 2)]
    names += [("repetition-penalty", f"penalty-{r}") for r in (1.02, 1.05, 1.1, 1.3)]
    for cause, name in names:
        if wanted(cause):
            cut = recordings.load(rec / f"{name}.npz").take(rows)
            yield Case(cause, name, cut, recordings.score(cut), clean, clean_rollout=base.decode)


def array_cases(base: recordings.Recording, clean: dict[str, Any]) -> Iterator[Case]:
    """Faults of the logged arrays; nothing is read again."""
    makers = [
        ("token-shift", f"{by:+d}, {share:.0%} of the sequences", partial(change.shift, by=by, share=share))
        for by, share in ((1, 1.0), (-1, 1.0), (1, 0.3), (2, 0.1))
    ]
    makers += [
        (
            "padding-in-mask",
            f"{c} tokens, {share:.0%} of the sequences",
            partial(change.pad, count=c, share=share),
        )
        for c, share in ((8, 1.0), (8, 0.2), (4, 0.1))
    ]
    makers += [("swapped-rows", f"{n} pairs", partial(change.swap, pairs=n)) for n in (12, 4, 1)]
    makers += [("broken-sequence", f"{s:g} nats", partial(change.break_one, size=s)) for s in (0.3, 1.0, 4.0)]
    makers += [
        ("sentinel-values", f"{v:g}, {n} tokens", partial(change.put, value=v, count=n))
        for v, n in ((np.nan, 1), (-np.inf, 3), (-9999.0, 5))
    ]
    for cause, severity, make in makers:
        legs = {
            **clean,
            "train/forward": make([np.asarray(row, dtype=np.float64) for row in clean["train/forward"]]),
        }
        yield Case(cause, severity, base, legs, clean)


def write_checkpoint(plant: recordings.Plant, folder: Path) -> None:
    """Writes the embedded model with a fault in it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(recordings.MODEL.path, dtype="bfloat16")
    plant(model)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(recordings.MODEL.path)


def main() -> None:
    """Runs one part of the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("record", "score", "report"))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "planted-faults")
    parser.add_argument("--only", help="one cause only")
    parser.add_argument("--held-out", action="store_true", help="other seeds, prompts and severities")
    parser.add_argument("--runs", type=int, default=200, help="clean subsets to diagnose")
    parser.add_argument("--image", type=Path, default=IMAGE, help="where the picture goes")
    arguments = parser.parse_args()
    work: Path = arguments.work
    study = HELD_OUT if arguments.held_out else DESIGN
    if arguments.part == "record":
        recordings.record(work / "recordings", num_prompts=128, seeds=study.seeds)
    elif arguments.part == "score":
        (work / "cases").mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        for case in score_cases(work, arguments.only, study):
            name = f"{case.cause}--{case.severity}".replace(" ", "-").replace("%", "").replace(",", "")
            (work / "cases" / f"{name}.pickle").write_bytes(pickle.dumps(case))
            print(f"{time.monotonic() - begin:6.0f} s  {case.cause}: {case.severity}", flush=True)
    else:
        report(work, arguments.runs, arguments.image)


def report(work: Path, runs: int, image: Path) -> None:
    """Diagnoses every case twice, and clean subsets; prints and writes tables and picture."""
    cases = [pickle.loads(path.read_bytes()) for path in sorted((work / "cases").glob("*.pickle"))]
    paired = next(case for case in cases if case.cause == "stale-weights")
    cases += array_cases(paired.recording, paired.clean or {})
    faults = [case for case in cases if case.cause != "clean"]
    clean = list(planted_report.clean_outcomes(cases, runs))
    both = [planted_report.outcome_of(case, both_sides=True) for case in faults]
    alone = [planted_report.outcome_of(case, both_sides=False) for case in faults]
    print(planted_report.table(both))
    for name, outcomes in (
        ("tensors, constants and ids of both sides", both),
        ("log-probabilities only", alone),
    ):
        right, above, below_right, below = planted_report.rates(outcomes)
        print(
            f"{name}: first named right in {right} of {above} above the floor, {below_right} of {below} below it"
        )
    false = [item for item in clean if item.named not in planted_report.NOT_NAMED.values()]
    print(f"clean: {len(false)} of {len(clean)} runs have a named cause")
    for item in (*false, *(item for item in (*both, *alone) if item.above and item.named != item.cause)):
        print(f"  {item.cause}, {item.severity}: {item.named}, {item.because}")
    panels = {
        "tensors, constants and ids of both sides at hand": [*clean, *both],
        "log-probabilities and routes only": [*clean, *alone],
    }
    planted_report.draw_matrix(panels, image)


if __name__ == "__main__":
    main()
