"""A run that was measured here, as the frameworks take it: padded tensors, and what a config was predicted to do to them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from parity.batches import Tokens

from mismatch_probe.config.model import ProbeConfig
from mismatch_probe.export.effect import ConfigEffect, expected_effect
from mismatch_probe.result import read_result
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.stages.importing import import_dump
from mismatch_probe.stages.measure import measure_run
from mismatch_probe.stages.weights_section import read_responses
from mismatch_probe.trace.parts import read_table, write_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import rollout_schema
from mismatch_probe.trace.trace import Trace
from mismatch_probe.weights import WeightMethod

PROMPTS, SAMPLES, SHORTEST, LONGEST = 32, 4, 3, 40
PROMPT = 4
# Share of the responses with hardly any mismatch, so that bands and K3 keep some and drop others.
CALM, HEAVY = 0.01, 0.35


@dataclass(frozen=True)
class Run:
    """A measured run.

    Attributes:
        result: result.json.
        responses: Its tokens, as the tool reads them.
    """

    result: dict[str, Any]
    responses: Responses

    def tokens(self, dtype: torch.dtype = torch.float64) -> Tokens:
        """Right-padded tensors; `train` is a leaf."""
        lengths = torch.tensor(np.diff(self.responses.offsets))
        mask = torch.arange(int(lengths.max())) < lengths[:, None]

        def padded(values: np.ndarray) -> torch.Tensor:
            table = torch.full(mask.shape, -1.0, dtype=torch.float64)
            table[mask] = torch.tensor(values)
            return table.to(dtype)

        old = self.responses.train if self.responses.old is None else self.responses.old
        return Tokens(
            train=padded(self.responses.train).requires_grad_(),
            old=padded(old),
            rollout=padded(self.responses.rollout),
            mask=mask,
            advantages=torch.tensor(self.responses.advantages).to(dtype),
        )


def planted_run(folder: Path, *, seed: int = 0) -> Run:
    """A prime-rl dump with known log-probabilities of all three policies, imported and measured.

    The mismatch and the update are large enough for caps, bands and clips to act; advantages have both signs and sum to 0
    over each prompt.
    """
    generator = np.random.default_rng(seed)
    lengths = generator.integers(SHORTEST, LONGEST + 1, PROMPTS * SAMPLES)
    lengths[0] = LONGEST
    rollout, old, train = [], [], []
    for length in lengths:
        spread = generator.choice([CALM, HEAVY])
        mu = -generator.exponential(0.9, length) - 0.02
        mismatch = generator.normal(-(spread**2) / 2, spread, length)
        update = generator.normal(-0.01, 0.15, length)
        # One token in fifty has moved far enough for a dual clip.
        update[generator.random(length) < 0.02] += 1.3
        pi_old = np.minimum(mu + mismatch, -1e-3)
        rollout.append(mu)
        old.append(pi_old)
        train.append(np.minimum(pi_old + update, -1e-3))
    half = generator.uniform(0.2, 1.5, (PROMPTS, SAMPLES // 2))
    advantages = np.concatenate([half, -half], axis=1).reshape(-1)
    _write_dump(folder / "dump" / "step_1" / "rank_0.jsonl", lengths, rollout, train, advantages)
    run = RunDirectory(folder / "run")
    run.path.mkdir()
    import_dump(run, "prime-rl", folder / "dump", ProbeConfig(out=run.path), "parity")
    _record_old(run, old)
    measure_run(run)
    return recorded(run)


def recorded(run: RunDirectory) -> Run:
    """A run directory that was measured."""
    parts = int(run.read_manifest()["num_parts"])
    return Run(read_result(run.result_path), read_responses(run, Trace(run, parts), parts))


def _write_dump(
    file: Path,
    lengths: np.ndarray,
    rollout: list[np.ndarray],
    train: list[np.ndarray],
    advantages: np.ndarray,
) -> None:
    file.parent.mkdir(parents=True)
    rows = []
    for place, length in enumerate(lengths):
        filler = [0.0] * PROMPT
        rows.append(
            {
                "token_ids": [3 + place // SAMPLES, *range(4, 3 + PROMPT), *([7] * int(length))],
                "loss_mask": [0] * PROMPT + [1] * int(length),
                "inference_logprobs": filler + rollout[place].tolist(),
                "trainer_logprobs": filler + train[place].tolist(),
                "advantages": [float(advantages[place])] * (PROMPT + int(length)),
            }
        )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _record_old(run: RunDirectory, old: list[np.ndarray]) -> None:
    """Fills the column that importers leave empty: no dump format has three policies."""
    for part in range(int(run.read_manifest()["num_parts"])):
        table = read_table(run.rollout_part(part), rollout_schema())
        rows = [old[place].tolist() for place in table["sequence_id"].to_pylist()]
        column = pa.array(rows, pa.list_(pa.float32()))
        place = table.schema.get_field_index("old_logprobs")
        write_table(run.rollout_part(part), table.set_column(place, "old_logprobs", column), run.note_part)


@dataclass(frozen=True)
class Summary:
    """What was predicted of a config, or what a framework did."""

    kept_fraction: float
    mean_weight: float
    ess: float

    @classmethod
    def predicted(cls, applies: tuple[WeightMethod, ...], run: Run) -> Summary:
        """Of what an exporter says of its config."""
        effect: ConfigEffect = expected_effect(applies, run.responses, resamples=0)
        values = [effect.kept_fraction.value, effect.mean_weight.value, effect.ess.value]
        assert all(value is not None for value in values), effect
        return cls(*(float(value) for value in values if value is not None))

    @classmethod
    def of(cls, phi: torch.Tensor, tokens: Tokens) -> Summary:
        """Of coefficients, [sequences, width], over the tokens of the run, dropped ones included."""
        weight = phi.to(torch.float64)[tokens.mask]
        assert bool(weight.isfinite().all())
        squares = float(weight.square().sum())
        assert squares > 0, "the framework's gradient is 0 everywhere: nothing is compared"
        return cls(
            kept_fraction=float((weight != 0).to(torch.float64).mean()),
            mean_weight=float(weight.mean()),
            ess=float(weight.sum()) ** 2 / (len(weight) * squares),
        )

    def apart(self, other: Summary) -> float:
        """The largest difference of the three."""
        return max(
            abs(mine - theirs)
            for mine, theirs in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        )
