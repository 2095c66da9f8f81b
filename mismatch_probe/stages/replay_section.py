"""`routing.replay` of a result: what forcing routes explains, the controls of it, and which layers it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mismatch_probe.routing.agreement import FloatArray, IntArray
from mismatch_probe.routing.replay_shares import additivity, layer_shares, lead_of_first, share_explained
from mismatch_probe.stages.replay_study import (
    ONLY,
    OWN,
    RECORDED,
    REPEAT,
    ROLLOUT,
    ROLLOUT_GATES,
    SELF,
    WITHOUT,
)
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import POSITIVE_MEAN, interval_from_table
from mismatch_probe.stats.kl import token_k3
from mismatch_probe.stats.layout import cluster_table
from mismatch_probe.trace.trace import Trace

_NO_STUDY = "the controls of routing replay were not taken (train.options.replay_controls)"
_UNRESOLVED = "Which layer comes first is not resolved: the lead of the first over the second may be chance."
_NO_LAYERS = "layers were not replayed one at a time (train.options.layer_replay)"


def replay_section(trace: Trace, legs: Sequence[str], *, layers: Sequence[int]) -> dict[str, Any]:
    """What routing replay explains, over the whole run and in the study of a few sequences.

    Args:
        trace: The run.
        legs: Legs that were read.
        layers: Index in the model of each MoE layer.
    """
    section = _whole_run(trace, legs)
    study = _read_study(trace)
    if study is None:
        absent = {"available": False, "reason": _NO_STUDY}
        return section | {name: dict(absent) for name in ("self_replay", "recorded", "gates", "by_layer")}
    return section | {
        "self_replay": _self_replay(study),
        "recorded": _recorded(study),
        "gates": _gates(study),
        "by_layer": _by_layer(study, layers),
    }


def _whole_run(trace: Trace, legs: Sequence[str]) -> dict[str, Any]:
    if "train/replay" not in legs:
        reason = "the leg train/replay was not taken"
        return {"k3_forward": None, "k3_replay": None, "explained": None, "note": reason}
    rollout = trace.rollout
    prompts = np.repeat(rollout.prompt_index, rollout.lengths)
    k3 = [token_k3(trace.logprobs(leg) - rollout.logprobs) for leg in ("train/forward", "train/replay")]
    table = cluster_table(prompts, *k3)
    n = int(rollout.offsets[-1])
    explained = share_explained(table[:, 0], table[:, 1], n=n)
    note = None
    if explained.value is not None and explained.value < 0:
        note = "with the rollout's experts the trainer is further from the rollout than with its own"
    return {
        "k3_forward": _mean(table[:, 0], table[:, 2], n),
        "k3_replay": _mean(table[:, 1], table[:, 2], n),
        "explained": explained,
        "note": note,
    }


@dataclass(frozen=True)
class _Study:
    """The study as flat arrays: log-probabilities of every case over the same response tokens.

    Attributes:
        cases: By case, float64 [tokens], nats.
        sampled: float64 [tokens]; those of the rollout.
        prompts: int64 [tokens].
        num_sequences: Sequences of the study.
    """

    cases: Mapping[str, FloatArray]
    sampled: FloatArray
    prompts: IntArray
    num_sequences: int

    @property
    def size(self) -> dict[str, int]:
        """What the study rests on."""
        return {
            "num_sequences": self.num_sequences,
            "num_prompts": int(np.unique(self.prompts).size),
            "num_tokens": self.sampled.size,
        }

    def k3_table(self, pairs: Sequence[tuple[str, str | None]]) -> FloatArray:
        """Sums of K3 by prompt of pairs (case, case it is held against; None: the rollout), then tokens."""
        columns = [
            token_k3(self.cases[case] - (self.sampled if base is None else self.cases[base]))
            for case, base in pairs
        ]
        return cluster_table(self.prompts, *columns)


def _read_study(trace: Trace) -> _Study | None:
    cases = trace.replay_cases()
    if OWN not in cases:
        return None
    rollout = trace.rollout
    ids = sorted(cases[OWN])
    place = {int(sequence): index for index, sequence in enumerate(rollout.sequence_id)}
    where = [place[sequence] for sequence in ids]
    spans = [slice(rollout.offsets[index], rollout.offsets[index + 1]) for index in where]
    sampled = np.concatenate([rollout.logprobs[span] for span in spans])
    flat = {case: np.concatenate([scores[sequence] for sequence in ids]) for case, scores in cases.items()}
    prompts = np.repeat(rollout.prompt_index[where], rollout.lengths[where])
    return _Study(flat, sampled, prompts, len(ids)) if sampled.size else None


def _self_replay(study: _Study) -> dict[str, Any]:
    """The forward's own routes forced on it: anything but 0 says that replay itself changes the arithmetic."""
    change = np.abs(study.cases[SELF] - study.cases[OWN])
    return {
        "available": True,
        "exact": not change.any(),
        "max_abs_change": float(change.max()),
        "num_changed": int(np.count_nonzero(change)),
        **study.size,
    }


def _recorded(study: _Study) -> dict[str, Any]:
    """R2: recorded training routes in a second training forward with another batching."""
    table = study.k3_table([(REPEAT, OWN), (RECORDED, OWN)])
    n = study.sampled.size
    if not table[:, 0].any():
        explained = Estimate(
            None, None, None, n, "the repeated forward is the same to the last bit: no noise to explain"
        )
    else:
        explained = share_explained(table[:, 0], table[:, 1], n=n)
    return {
        "available": True,
        "k3_repeat": _mean(table[:, 0], table[:, 2], n),
        "k3_recorded": _mean(table[:, 1], table[:, 2], n),
        "explained": explained,
        **study.size,
    }


def _gates(study: _Study) -> dict[str, Any]:
    """R3 with ids only, where gate weights are recomputed, against R3 with the rollout's gate weights as well."""
    if ROLLOUT_GATES not in study.cases:
        return {
            "available": False,
            "reason": "the rollout engine recorded no gate weights: replay recomputes them from the trainer's own router",
        }
    table = study.k3_table([(OWN, None), (ROLLOUT, None), (ROLLOUT_GATES, None)])
    n = study.sampled.size
    return {
        "available": True,
        "k3_own": _mean(table[:, 0], table[:, 3], n),
        "k3_ids": _mean(table[:, 1], table[:, 3], n),
        "k3_ids_and_gates": _mean(table[:, 2], table[:, 3], n),
        "explained_ids": share_explained(table[:, 0], table[:, 1], n=n),
        "explained_ids_and_gates": share_explained(table[:, 0], table[:, 2], n=n),
        **study.size,
    }


def _by_layer(study: _Study, layers: Sequence[int]) -> dict[str, Any]:
    """The rollout's experts in one layer at a time, and in all but one."""
    if f"{ONLY}0" not in study.cases:
        return {"available": False, "reason": _NO_LAYERS}
    indices = range(len(layers))
    table = study.k3_table(
        [
            (OWN, None),
            (ROLLOUT, None),
            *((f"{ONLY}{index}", None) for index in indices),
            *((f"{WITHOUT}{index}", None) for index in indices),
        ]
    )[:, :-1]
    n, count = study.sampled.size, len(layers)
    own, joint, only, without = table[:, 0], table[:, 1], table[:, 2 : 2 + count], table[:, 2 + count :]
    shares = layer_shares(own, joint, only, without, n=n)
    ratio = additivity(own, joint, only, n=n)
    lead = lead_of_first(own, only, n=n)
    resolved = lead is None or (lead.ci_low is not None and lead.ci_low > 0.0)
    sentence = ratio.sentence if resolved else f"{_UNRESOLVED} {ratio.sentence}"
    return {
        "available": True,
        "joint": share_explained(own, joint, n=n),
        "layers": [
            {"layer": int(layer), "rank": share.rank, "alone": share.alone, "last": share.last}
            for layer, share in zip(layers, shares, strict=True)
        ],
        "additivity": ratio.ratio,
        "additive": ratio.additive,
        "lead_of_first": lead,
        "resolved": resolved,
        "sentence": sentence,
        **study.size,
    }


def _mean(sums: FloatArray, counts: FloatArray, n: int) -> Estimate:
    return interval_from_table(np.stack([sums, counts], axis=1), POSITIVE_MEAN, n=n)
