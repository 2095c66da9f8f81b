"""Writes a run directory with planted drift, as another program would: manifest, rollout parts, scores/train/forward.

    python benchmarks/synthetic_run.py --out runs/synthetic --kappa 1.5e-3 --length 8192
    mismatch-probe measure runs/synthetic && mismatch-probe simulate runs/synthetic --lengths 1024,5093,8192

Per token log pi - log mu is N(-kappa, 2 kappa), so that the ratio has mean 1 and log W of T tokens is
N(-kappa T, 2 kappa T). `--heavy` puts part of kappa into rare large tokens instead. Without `--update` the trainer has
the rollout's weights and recorded no pi_old; with it old_logprobs are recorded and pi lies that KL away from them.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mismatch_probe import __version__
from mismatch_probe.config.model import ProbeConfig
from mismatch_probe.preflight.environment import package_versions
from mismatch_probe.trace.parts import write_table
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.schema import SCHEMA_VERSION, rollout_schema, score_schema

VOCABULARY = 1000
OUTLIER_RATE, OUTLIER_SD = 0.001, 0.7
SEQUENCES_PER_PART = 64


@dataclass(frozen=True)
class Planted:
    """What is planted.

    Attributes:
        kappa: KL(mu || pi_old) per token, nats.
        length: Tokens of every response.
        prompts: Prompts.
        samples: Responses a prompt; every other one has advantage 1, the rest -1.
        heavy: Whether rare large tokens carry part of kappa.
        update: KL(pi_old || pi) per token, nats; 0 records no pi_old.
        seed: Of all draws.
    """

    kappa: float = 1.5e-3
    length: int = 8192
    prompts: int = 256
    samples: int = 4
    heavy: bool = False
    update: float = 0.0
    seed: int = 0


def write_run(path: Path, planted: Planted) -> RunDirectory:
    """Writes the run; `measure` and everything after it work on it."""
    run = RunDirectory(path)
    path.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(planted.seed)
    total = planted.prompts * planted.samples
    starts = range(0, total, SEQUENCES_PER_PART)
    digest = hashlib.sha256()
    for part, start in enumerate(starts):
        ids = np.arange(start, min(start + SEQUENCES_PER_PART, total))
        rollout, scores = _part(ids, planted, generator)
        write_table(run.rollout_part(part), rollout)
        write_table(run.score_part("train/forward", part), scores)
        digest.update(repr(rollout["response_token_ids"].combine_chunks().values.to_numpy()).encode())
    run.write_manifest(_manifest(planted, len(starts), digest.hexdigest()))
    return run


def _part(ids: np.ndarray, planted: Planted, generator: np.random.Generator) -> tuple[pa.Table, pa.Table]:
    count, length = len(ids), planted.length
    mismatch = _log_ratio(planted, (count, length), generator)
    update = generator.normal(-planted.update, np.sqrt(2 * planted.update), (count, length))
    # Most tokens near-certain, some open; never so likely that a policy would pass probability 1.
    rollout = -generator.gamma(0.3, 2.0, (count, length)) - 1e-3
    rollout = np.minimum(rollout, -1e-3 - np.maximum(mismatch, 0.0) - np.maximum(update, 0.0))
    old = rollout + mismatch
    columns: dict[str, Any] = {
        "sequence_id": ids,
        "prompt_id": [f"prompt-{i // planted.samples}" for i in ids],
        "sample_index": ids % planted.samples,
        "prompt_token_ids": [[1, 2, 3]] * count,
        "response_token_ids": list(generator.integers(4, VOCABULARY, (count, length), dtype=np.int32)),
        "rollout_logprobs": list(rollout.astype(np.float32)),
        "finish_reason": ["length"] * count,
        "advantage": np.where(ids % 2 == 0, 1.0, -1.0),
        "reward": np.where(ids % 2 == 0, 1.0, 0.0),
        "weight_version": [None] * count,
        "old_logprobs": list(old.astype(np.float32)) if planted.update else [None] * count,
        "loss_mask": [None] * count,
    }
    scores = {
        "sequence_id": ids,
        "logprobs": list((old + update).astype(np.float32)),
        "entropy": [None] * count,
    }
    return pa.table(columns, schema=rollout_schema()), pa.table(scores, schema=score_schema())


def _log_ratio(planted: Planted, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """N(-v / 2, v) a token, v = 2 kappa; or most of them so and a few wide ones, of the same kappa together."""
    if not planted.heavy:
        return generator.normal(-planted.kappa, np.sqrt(2 * planted.kappa), shape)
    wide = generator.random(shape) < OUTLIER_RATE
    rest = 2 * (planted.kappa - OUTLIER_RATE * OUTLIER_SD**2 / 2) / (1 - OUTLIER_RATE)
    if rest <= 0:
        raise SystemExit(
            f"kappa must be above {OUTLIER_RATE * OUTLIER_SD**2 / 2:g} for outliers to fit into it"
        )
    variance = np.where(wide, OUTLIER_SD**2, rest)
    return np.asarray(generator.normal(-variance / 2, np.sqrt(variance)))


def _manifest(planted: Planted, num_parts: int, responses: str) -> dict[str, Any]:
    """The least that the stages after scoring read."""
    sampling = {"samples": planted.samples, "max_tokens": planted.length}
    config = ProbeConfig.model_validate({"sampling": sampling})
    return {
        "schema_version": SCHEMA_VERSION,
        "tool_version": __version__,
        "run_id": f"synthetic-{planted.seed}",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"benchmarks/synthetic_run.py {planted}",
        "config": config.model_dump(mode="json"),
        "config_set": ["sampling"],
        "legs": ["rollout/decode", "train/forward"],
        "routing": False,
        "num_parts": num_parts,
        "num_sequences": planted.prompts * planted.samples,
        "versions": package_versions(),
        "model": {
            "name": f"synthetic, kappa {planted.kappa:g}",
            "path": None,
            "num_moe_layers": 0,
            "vocab_size": VOCABULARY,
            "weights_sha256": "0" * 64,
        },
        "train_model": {"name": f"synthetic, kappa {planted.kappa:g}"},
        "prompts": {
            "source": "synthetic",
            "num_prompts": planted.prompts,
            "sha256": "0" * 64,
            "reward": "planted",
        },
        "engines": {},
        "responses_sha256": responses,
        "stages": {"record": "done", "score": "done"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    for name in ("kappa", "update"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Planted, name))
    for name in ("length", "prompts", "samples", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Planted, name))
    parser.add_argument("--heavy", action="store_true")
    options = vars(parser.parse_args())
    out = options.pop("out")
    run = write_run(out, Planted(**options))
    print(f"wrote {run.path}; now: mismatch-probe measure {run.path}")


if __name__ == "__main__":
    main()
