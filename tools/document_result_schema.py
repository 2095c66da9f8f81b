"""Writes the JSON Schema of result.json: `python -m tools.document_result_schema`.

Sections that are dataclasses in the code are described by those, with their docstrings' attributes as descriptions; what is
put together from several is written out here. The schema is closed: a key that it does not describe is refused, but for
settings and details that engines state of themselves, and sections that other verbs add, which are described in their first
level.
"""

from __future__ import annotations

import json
from typing import get_args

from mismatch_probe.causes.checkpoints import CheckpointComparison
from mismatch_probe.causes.diagnosis import Diagnosis
from mismatch_probe.causes.evidence import Evidence
from mismatch_probe.config.bars import Bars
from mismatch_probe.engines.refit import WeightComparison
from mismatch_probe.findings import Finding
from mismatch_probe.recommendation import GOALS
from mismatch_probe.recommendation.action import Effect, Kind
from mismatch_probe.recommendation.candidates import Candidate
from mismatch_probe.recommendation.goals import Choice
from mismatch_probe.recommendation.monitor import Watched
from mismatch_probe.result import RESULT_SCHEMA_VERSION, SCHEMA_PATH
from mismatch_probe.simulate.response import MethodResponse, Unavailable
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.length_law import Extrapolation, LengthLaw
from mismatch_probe.stats.naming import FrameworkMetric
from mismatch_probe.stats.pareto import ParetoK
from mismatch_probe.stats.sequence_summary import SequenceSummary
from mismatch_probe.stats.step_summary import StepCovariance, StepSummary
from mismatch_probe.stats.token_summary import TokenSummary
from mismatch_probe.stats.validity.check import Check
from tools.schema_of_types import (
    FLAG,
    INTEGER,
    NUMBER,
    OPEN,
    TEXT,
    Schema,
    Schemas,
    array,
    closed,
    described,
    either,
    first_sentence,
    maybe,
    opened,
)


def build() -> Schema:
    """The schema of result.json."""
    schemas = Schemas()
    sections = Sections(schemas)
    properties = sections.all()
    added = {"weights_reads", "simulation", "tuning", "ablation", "location"}
    definitions = {**schemas.definitions, "absent": ABSENT}
    estimate = definitions["Estimate"]
    # A number that could not be had says why.
    estimate["if"] = {"properties": {"value": {"type": "null"}}}
    estimate["then"] = {"required": ["reason"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "result.json of Mismatch Probe",
        "description": "What was measured of one engine pair. log_ratio is log pi - log mu, training minus rollout, "
        "in nats. Intervals are 95 %, by prompts.",
        **closed(properties, optional=added),
        "$defs": dict(sorted(definitions.items())),
    }


ABSENT = described(
    {
        "type": "object",
        "properties": {"available": {"const": False}, "reason": TEXT, "failed": FLAG},
        "required": ["available", "reason"],
        "additionalProperties": False,
    },
    "A section that could not be had, and why.",
)
NO_SECTION: Schema = {"$ref": "#/$defs/absent"}


class Sections:
    """The sections of result.json."""

    def __init__(self, schemas: Schemas) -> None:
        self._of = schemas.of
        self._fields = schemas.fields

    def all(self) -> dict[str, Schema]:
        """Every section by its key."""
        return {
            "schema_version": {"const": RESULT_SCHEMA_VERSION},
            "provenance": self._provenance(),
            "data_quality": self._data_quality(),
            "token": either(self._token(), NO_SECTION),
            "sequence": either(self._sequence(), NO_SECTION),
            "weight_sync": either(self._weight_sync(), NO_SECTION),
            "legs": either(self._legs(), NO_SECTION),
            "routing": either(self._routing(), NO_SECTION),
            "weights_reads": described(TEXT, "Which policies the weights were made from."),
            "weights": either(self._weights(), NO_SECTION),
            "causes": self._causes(),
            "verdict": {"enum": ["pass", "drift", "inconclusive"]},
            "exit_code": {"enum": [0, 1, 3]},
            "verdict_sentence": TEXT,
            "findings": described(array(self._of(Finding)), "Errors first, then warnings, then notes."),
            "bars": self._bars(),
            "recommendation": self._recommendation(),
            "simulation": either(
                described(
                    opened({key: {} for key in ("reads", "seed", "staleness", "sweeps", "extrapolation")}),
                    "Of `simulate`.",
                ),
                NO_SECTION,
            ),
            "tuning": described(
                {
                    "type": "object",
                    "additionalProperties": opened(
                        {"schema_version": INTEGER, "method": TEXT, "reads": TEXT, "k_hat": self._of(ParetoK)}
                    ),
                },
                "Of `tune`, by method.",
            ),
            "ablation": described(
                opened(
                    {
                        "schema_version": INTEGER,
                        "num_sequences": INTEGER,
                        "num_prompts": INTEGER,
                        "tokens_sha256": TEXT,
                    }
                ),
                "Of `ablate`: the content of ablation.json.",
            ),
            "location": described(
                opened({"schema_version": INTEGER, "num_sequences": INTEGER, "num_tokens": INTEGER}),
                "Of `locate`: the content of location.json.",
            ),
        }

    def _provenance(self) -> Schema:
        side = maybe(opened({"version": maybe(TEXT), "dtype": maybe(TEXT)}))
        return described(
            closed(
                {
                    "command": TEXT,
                    "created_at": described(TEXT, "ISO 8601, UTC."),
                    "run_id": TEXT,
                    "tool_version": TEXT,
                    "model": described(
                        opened({"name": TEXT}),
                        "Facts of the rollout's checkpoint and the digest of its weights.",
                    ),
                    "train_model": described(OPEN, "Name of the trainer's checkpoint."),
                    "rollout": described(side, "What the rollout engine said of itself."),
                    "train": described(side, "What the training side said of itself."),
                    "reference": described(side, "The same in float32, where that leg was taken."),
                    "sampling": described(maybe(OPEN), "How the responses were sampled."),
                    "imported": described(
                        maybe(OPEN), "Of an import: the framework, the dump, and what was dropped."
                    ),
                    "prompts": opened({"num_prompts": INTEGER}),
                    "responses_sha256": maybe(TEXT),
                    "versions": {"type": "object", "additionalProperties": maybe(TEXT)},
                    "num_sequences": INTEGER,
                    "num_tokens": described(INTEGER, "Response tokens that count."),
                    "num_prompt_tokens": INTEGER,
                    "mean_reward": maybe(NUMBER),
                    "has_advantages": FLAG,
                    "finish_reasons": {"type": "object", "additionalProperties": INTEGER},
                    "legs": array(TEXT),
                }
            ),
            "What was run, with which versions.",
        )

    def _data_quality(self) -> Schema:
        unusable = closed(
            {"num_tokens": INTEGER, "num_sequences": INTEGER, "sequences": array(INTEGER), "reason": TEXT}
        )
        return described(
            closed(
                {
                    "trusted": described(FLAG, "No check failed that would make the numbers meaningless."),
                    "checks": array(self._of(Check)),
                    "excluded_tokens": INTEGER,
                    "unusable": described(maybe(unusable), "Tokens without a log-probability on a side."),
                    "broken_legs": described(
                        {"type": "object", "additionalProperties": INTEGER},
                        "Tokens without a number, by leg.",
                    ),
                    "masked_tokens": described(
                        INTEGER, "Response tokens outside the loss mask, left out everywhere."
                    ),
                }
            ),
            "Validity checks.",
        )

    def _token(self) -> Schema:
        ecdf = closed({"levels": array(NUMBER), "abs_log_ratio": array(NUMBER)})
        more = {
            "token_class_names": array(TEXT),
            "ecdf": described(ecdf, "Quantiles of |log_ratio|, nats."),
            "dashboards": described(
                array(self._of(FrameworkMetric)), "The same drift under the names that frameworks log."
            ),
        }
        return described(
            closed({**self._fields(TokenSummary), **more}), first_sentence(TokenSummary.__doc__ or "")
        )

    def _sequence(self) -> Schema:
        law = closed({**self._fields(LengthLaw), "extrapolation": array(self._of(Extrapolation))})
        fields = {**self._fields(SequenceSummary), "length_law": law, "max_length": INTEGER}
        return described(closed(fields), first_sentence(SequenceSummary.__doc__ or ""))

    def _weight_sync(self) -> Schema:
        return described(
            closed(
                {
                    "available": {"const": True},
                    "exact": described(FLAG, "Log-probabilities and weights are what they were."),
                    "path": {"enum": ["decode", "prefill"]},
                    "num_sequences": INTEGER,
                    "num_tokens": INTEGER,
                    "num_not_finite": INTEGER,
                    "change": either(self._of(StepSummary), NO_SECTION),
                    "weights": self._of(WeightComparison),
                    "modules": array(TEXT),
                    "layers": array(INTEGER),
                    "load_seconds": NUMBER,
                    "seconds": NUMBER,
                }
            ),
            "What a reload of the engine's own checkpoint did to it.",
        )

    def _legs(self) -> Schema:
        place = {
            "from": TEXT,
            "to": TEXT,
            "meaning": TEXT,
            "role": TEXT,
            "waterfall": described(FLAG, "The step is one of those that add up to the total."),
        }
        size = {"num_sequences": INTEGER, "num_tokens": INTEGER}
        step = closed({**place, **self._fields(StepSummary), **size}, optional=size)
        comparison = closed(
            {
                "leg": TEXT,
                "baseline": TEXT,
                "changes": TEXT,
                "k3_difference": opened({"value": maybe(NUMBER)}),
                "p_value": maybe(NUMBER),
                "p_holm": NUMBER,
                "num_prompts": maybe(INTEGER),
            },
            optional=("p_holm",),
        )
        floor = closed(
            {
                **{
                    name: maybe(self._of(Estimate))
                    for name in ("repeat_k3", "decode_prefill_k3", "rounding_k3")
                },
                "k3": maybe(NUMBER),
                "source": maybe(TEXT),
                "exact": FLAG,
                "total_over_floor": maybe(NUMBER),
                "reason": maybe(TEXT),
            }
        )
        return described(
            closed(
                {
                    "available": array(TEXT),
                    "steps": array(step),
                    "covariance": maybe(self._of(StepCovariance)),
                    "comparisons": described(
                        array(comparison), "Legs against train/forward, paired by prompt."
                    ),
                    "floor": described(
                        floor, "What each side does to itself by batching and rounding; K3, nats."
                    ),
                }
            ),
            "Readings of the same tokens, and the steps between them.",
        )

    def _routing(self) -> Schema:
        estimate = self._of(Estimate)
        drift = {"n": INTEGER, "mean_abs_log_ratio": estimate, "k3": estimate}
        layer = opened({"layer": INTEGER, "set_agreement": estimate, "jaccard": estimate, "missing": INTEGER})
        edge = closed(
            {"low": NUMBER, "high": maybe(NUMBER), "n": INTEGER, "flipped": INTEGER, "flip_rate": NUMBER}
        )
        margins = closed({"available": {"const": True}, "unit": TEXT, "bins": array(edge)})
        load = closed({"layer": INTEGER, "rollout": array(NUMBER), "train": array(NUMBER)})
        replay = {
            "k3_forward": maybe(estimate),
            "k3_replay": maybe(estimate),
            "explained": described(
                maybe(estimate), "Share of the token K3 that the rollout's experts take away."
            ),
            "note": maybe(TEXT),
            **dict.fromkeys(("self_replay", "recorded", "gates", "by_layer"), OPEN),
        }
        return described(
            closed(
                {
                    "available": {"const": True},
                    **dict.fromkeys(("num_tokens", "num_layers", "top_k", "num_experts"), INTEGER),
                    "layers": array(layer),
                    "set_agreement": described(
                        estimate, "Share of routers (token by layer) that choose the same set."
                    ),
                    "token_any_flip_rate": described(
                        estimate, "Share of tokens with another set in some layer."
                    ),
                    "mean_flipped_layers": estimate,
                    "flipped_layers_histogram": array(INTEGER),
                    "log_ratio_by_flips": array(closed({"flips": INTEGER, "or_more": FLAG, **drift})),
                    "log_ratio_by_first_flip": array(closed({"layer": maybe(INTEGER), **drift})),
                    "flipped_tokens": closed({"share_of_tokens": estimate, "share_of_k3": estimate}),
                    "margins": either(margins, NO_SECTION),
                    "expert_load": array(load),
                    "top1_reason": maybe(TEXT),
                    "completeness": closed(dict.fromkeys(("tokens", "missing", "missing_routes"), INTEGER)),
                    "replay": opened(replay),
                }
            ),
            "Experts of both sides, compared token by token and layer by layer.",
        )

    def _weights(self) -> Schema:
        method = either(self._of(MethodResponse), self._of(Unavailable))
        return described(
            {
                "type": "object",
                "propertyNames": {"not": {"const": "available"}},
                "additionalProperties": method,
            },
            "What each correction does to these responses, by its name.",
        )

    def _causes(self) -> Schema:
        evidence = {
            **self._fields(Evidence),
            "weights": maybe(self._of(CheckpointComparison)),
            "constants": maybe({"type": "array"}),
        }
        return described(
            closed({"evidence": closed(evidence), "diagnosis": self._of(Diagnosis)}),
            "Where the drift comes from: the evidence, and the causes that it names.",
        )

    def _bars(self) -> Schema:
        fields = Bars.model_json_schema()["properties"]
        optional = [name for name, field in Bars.model_fields.items() if not field.is_required()]
        return described(
            closed(dict.fromkeys(fields, NUMBER), optional=optional),
            "The bars that the verdict was made with.",
        )

    def _recommendation(self) -> Schema:
        measured = closed({"name": TEXT, "value": NUMBER})
        action = closed(
            {
                "rank": INTEGER,
                "code": TEXT,
                "kind": {"enum": list(get_args(Kind))},
                "action": TEXT,
                "because": TEXT,
                "measured": maybe(measured),
                "effects": array(self._of(Effect)),
                "no_effect": maybe(TEXT),
            }
        )
        by_name = {"type": "object", "additionalProperties": {}}
        return described(
            closed(
                {
                    "goal": {"enum": list(GOALS)},
                    "summary": TEXT,
                    "actions": array(action),
                    "method": described(
                        maybe(TEXT), "What `export` writes; null on numbers that are not to be trusted."
                    ),
                    "parameters": by_name,
                    "weight_reads": maybe(TEXT),
                    "routing_replay": FLAG,
                    "fp32_head": FLAG,
                    "candidates": {"type": "object", "additionalProperties": self._of(Candidate)},
                    "goals": {
                        "type": "object",
                        "propertyNames": {"enum": list(GOALS)},
                        "additionalProperties": self._of(Choice),
                    },
                    "assumptions": array(TEXT),
                    "monitor": array(self._of(Watched)),
                    "reads_by_framework": {"type": "object", "additionalProperties": TEXT},
                }
            ),
            "What to do, in order; the correction that `export` writes, what was put forward, and what to watch.",
        )


def main() -> None:
    """Writes the file."""
    SCHEMA_PATH.write_text(json.dumps(build(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
