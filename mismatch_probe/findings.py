"""Findings: what a verdict consists of, with codes that stay what they are.

MP1xx data and alignment, MP2xx token drift, MP3xx sequences and tails, MP4xx routing, MP5xx weights, MP6xx causes,
MP9xx the tool itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing worth knowing.

    Attributes:
        code: Stable code, see `CATALOGUE`.
        severity: "error" decides the verdict, "warning" should be read, "info" is worth a line.
        title: What it is, in a few words.
        observed: What was measured, or None.
        bar: What it was held against, or None.
        would_pass_at: The bar that it would just pass at, or None.
        unit: Of the three numbers above.
        n: Observations behind `observed`, or None.
        advice: What to do.
        detail: One sentence with the numbers in words.
        linked: Codes that say the same thing and have no finding of their own.
    """

    code: str
    severity: Severity
    title: str
    observed: float | None
    bar: float | None
    would_pass_at: float | None
    unit: str
    n: int | None
    advice: str
    detail: str
    linked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a code means, independent of a run.

    Attributes:
        title: What it is, in a few words.
        meaning: What it says about the engine pair and why it matters.
        advice: What to do, the surest first.
    """

    title: str
    meaning: str
    advice: str


CATALOGUE: dict[str, Explanation] = {
    "MP101": Explanation(
        "token ids do not line up",
        "The two sides did not read the same ids, so no difference between them means anything.",
        "feed token ids, never text, to both sides; record again",
    ),
    "MP102": Explanation(
        "non-finite or sentinel log-probabilities",
        "NaN, infinity or placeholder values such as -9999 stand where log-probabilities should.",
        "find which side writes them (the worst tokens name the sequence) and mask or mend them before training",
    ),
    "MP103": Explanation(
        "log-probabilities above zero",
        "A probability above 1 is no probability: logits or differences were passed for log-probabilities.",
        "check what the side returns; log-probabilities must come out of a log-softmax",
    ),
    "MP104": Explanation(
        "mean log ratio is positive",
        "Under tokens sampled from the rollout policy the mean of log pi - log mu is minus a KL divergence, so it cannot be "
        "positive. A significantly positive mean proves a bug, such as raw log-probabilities at a temperature below 1.",
        "check temperature on both sides, logprobs_mode=processed_logprobs, and the order of the two sides",
    ),
    "MP105": Explanation(
        "log-probabilities are shifted by a token",
        "One side's row fits the other better when moved by one or two places.",
        "check the off-by-one between logits and labels; logits at position i predict token i + 1",
    ),
    "MP106": Explanation(
        "the two sides use different temperatures",
        "The differences follow the log-probability itself, as they do when one side divides logits by another temperature.",
        "apply the sampling temperature in the trainer's forward",
    ),
    "MP107": Explanation(
        "the rollout's support is truncated",
        "top-p, top-k or min-p cut tokens from the sampling distribution that the trainer still gives mass to: every ratio "
        "is then biased by the lost mass.",
        "sample with top_p=1 and top_k=-1, or replay the keep-set in the trainer",
    ),
    "MP108": Explanation(
        "the two sides are equal to the last bit",
        "Either both sides ran the same arithmetic, or one side's values were copied to the other.",
        "if two engines were meant, check that two engines ran",
    ),
    "MP109": Explanation(
        "log-probabilities lie on the BF16 lattice of the head",
        "Differences between the sides cluster at multiples of the BF16 step of the logits: the head's output is rounded.",
        "compute the LM head in float32 (TRL: cast_lm_head_to_fp32)",
    ),
    "MP110": Explanation(
        "rows are duplicated or swapped",
        "Some sequences fit another sequence's log-probabilities better than their own.",
        "check the order in which the batch is gathered and scattered",
    ),
    "MP111": Explanation(
        "raw log-probabilities of processed samples",
        "The rollout's log-probabilities describe the distribution before temperature and truncation, the tokens came from "
        "the one after.",
        "set logprobs_mode=processed_logprobs in the rollout engine",
    ),
    "MP201": Explanation(
        "token drift above the floor",
        "The two sides differ by more than batching and rounding explain, so something else differs: kernels, routing, "
        "sampling semantics or weights.",
        "look at the waterfall: the largest step names the side; then ablate knobs on that side",
    ),
    "MP202": Explanation(
        "token drift above the published band",
        "No floor was measured, and the drift is above what healthy runs report.",
        "take the legs train/repeat and train/reference, so that a floor is known",
    ),
    "MP203": Explanation(
        "large mean |log ratio|",
        "The average token differs by more than healthy runs report.",
        "see MP201",
    ),
    "MP204": Explanation(
        "the rollout engine disagrees with itself",
        "Its decode path and its prefill path give the same tokens different log-probabilities, beyond the other floors.",
        "suspect KV-cache dtype, chunked prefill, prefix cache across weight updates, or decode attention kernels",
    ),
    "MP205": Explanation(
        "extreme tokens",
        "Too many tokens have a probability ratio beyond 2 either way; these few decide what every correction does.",
        "look at the worst tokens; where they are unlikely tokens with routing flips, turn routing replay on",
    ),
    "MP301": Explanation(
        "the tail of the sequence weights is too heavy",
        "The Pareto shape k-hat of W is above what this many sequences can carry: means of W, ESS and chi-square are not "
        "to be trusted at this length.",
        "use a correction that does not average W itself (token level, or VESPO), or measure more sequences",
    ),
    "MP302": Explanation(
        "few effective sequences",
        "Plain sequence importance weighting would learn from a fraction of the batch.",
        "truncate, use token-level weights or VESPO, or lower the drift first",
    ),
    "MP303": Explanation(
        "responses are longer than sequence weighting can carry",
        "At this drift per token the effective sample size of W falls below a tenth before the responses end.",
        "do not use plain sequence-level importance weights at this length",
    ),
    "MP304": Explanation(
        "no tail estimate",
        "The tail of W could not be fitted.",
        "measure more sequences",
    ),
    "MP401": Explanation(
        "experts differ between the sides",
        "The routers of the two sides pick different experts for more tokens than healthy runs report.",
        "turn routing replay on, or compute the router in float32 on both sides",
    ),
    "MP402": Explanation(
        "routing replay removes much of the drift",
        "Forcing the trainer's experts to the rollout's takes away most of the token drift.",
        "turn routing replay on (R3): the trainer then uses the experts that the rollout engine chose",
    ),
    "MP403": Explanation(
        "routing replay does not explain the drift",
        "The drift stays when the experts are the same, so it comes from elsewhere.",
        "leave replay off for this reason alone; look at the waterfall and at precision",
    ),
    "MP404": Explanation(
        "replaying a forward's own experts changes it",
        "Forcing the experts that a forward chose itself must change nothing, bit for bit. Here it moves log-probabilities, "
        "so replay does something besides choosing experts, and what it is said to explain holds that too.",
        "do not trust what replay explains on this model; report its architecture: the replay of its router differs from "
        "its own forward",
    ),
    "MP501": Explanation(
        "a correction shifts the balance of signs",
        "It weighs negative and positive advantages differently by more than the bar, so the mean advantage drifts.",
        "compare methods in the weights table; lower the drift, or tune the kernel",
    ),
    "MP502": Explanation(
        "a correction drops much of the data",
        "Many tokens get no gradient at all from it at this drift.",
        "widen its thresholds to the measured drift, or choose another method",
    ),
    "MP601": Explanation(
        "loading the same weights again changes the rollout engine",
        "The checkpoint that the engine already has was loaded through its own update path, and the log-probabilities of "
        "the same tokens moved or its weights are no longer those of a fresh engine. In RL training this happens at the "
        "first weight sync, without an error: every rollout after it comes from another policy than the one trained.",
        "do not train on this engine until rollout/refit is exact: restart it for each update, or use another update path "
        "or version; the modules named are where the engine's layout of the weights goes wrong (explain broken-reload)",
    ),
    "MP602": Explanation(
        "an updated checkpoint does not reach the rollout engine whole",
        "After an updated checkpoint was loaded into the running engine, its log-probabilities or weights are not those "
        "of an engine started from that checkpoint: some modules kept old weights or hold them wrongly.",
        "do not sync weights this way with this engine and version; after every sync, replay some tokens and compare them "
        "with a fresh engine",
    ),
    "MP603": Explanation(
        "the rollout engine did not get through a reload of its own weights",
        "The engine refused to load the checkpoint that it already has, failed while doing so, or died of it. Nothing is "
        "known of its weight sync, and RL training would meet the same after its first step.",
        "read the reason; update weights another way, or leave rollout/refit out of legs if this engine is never updated",
    ),
    "MP605": Explanation(
        "one module computes something else",
        "Fed with the rollout engine's own hidden states, this module of the training side gives something else, by more "
        "than rounding does to it and by more than the same module of other layers. What came before does not count: the "
        "error is this module's own. Its weights differ between the sides, or its kernel is wrong on one of them.",
        "compare this module's weights on both sides (`mismatch-probe ablate RUN --knob refit` for a weight sync), then its "
        "kernel: another attention or MoE backend on one side",
    ),
    "MP901": Explanation(
        "exact",
        "Two legs agree in every bit; there is no floor to compare with and nothing to divide by.",
        "nothing to do",
    ),
    "MP902": Explanation(
        "too little data for a verdict",
        "There are fewer tokens or prompts than the bars ask for.",
        "use more prompts, more samples or longer responses",
    ),
    "MP903": Explanation(
        "random weights",
        "The checkpoint has random weights: shapes and code paths are real, the size of the drift says nothing about a "
        "trained model.",
        "audit the real checkpoint before deciding anything",
    ),
    "MP904": Explanation(
        "no advantages",
        "The prompts have no answers to reward, so weights by advantage sign are computed for both signs assumed.",
        "give prompts with answers, or import advantages",
    ),
    "MP905": Explanation(
        "tokens outside the loss are left out",
        "The run has a loss mask: tokens the policy did not sample, such as a tool's output. Drift, legs, weights and "
        "simulation are those of the other tokens, and positions and lengths count only them. Routes are compared at "
        "every fed token, as for a prompt.",
        "nothing, if the share of masked tokens is what the rollouts are known to have",
    ),
}


def finding(
    code: str,
    severity: Severity,
    detail: str,
    *,
    observed: float | None = None,
    bar: float | None = None,
    unit: str = "",
    n: int | None = None,
    advice: str | None = None,
) -> Finding:
    """A finding with the title and advice of its code.

    Args:
        code: A code of `CATALOGUE`.
        severity: How much it matters in this run.
        detail: One sentence with the numbers in words.
        observed: What was measured.
        bar: What it was held against; `would_pass_at` is then `observed`.
        unit: Of the numbers.
        n: Observations.
        advice: What to do here, if that is more than the catalogue's advice.
    """
    entry = CATALOGUE[code]
    return Finding(
        code=code,
        severity=severity,
        title=entry.title,
        observed=observed,
        bar=bar,
        would_pass_at=observed if bar is not None else None,
        unit=unit,
        n=n,
        advice=advice or entry.advice,
        detail=detail,
    )


LAYER = re.compile(r"\blayers?\.(\d+)\b")
"""Where a dotted name holds the number of its layer."""


def name_modules(modules: Iterable[str], *, most: int = 4) -> str:
    """Modules of a model in few words: those that differ only by their layer are named once, with the layers.

    Args:
        modules: Dotted names.
        most: Names before the rest is counted.
    """
    layers: dict[str, list[int]] = {}
    for module in sorted(set(modules)):
        found = LAYER.search(module)
        name = module if found is None else f"{module[: found.start(1)]}*{module[found.end(1) :]}"
        layers.setdefault(name, []).extend([] if found is None else [int(found[1])])
    named = [
        f"{name} (layer{'s' if len(where) > 1 else ''} {', '.join(map(str, sorted(where)))})"
        if where
        else name
        for name, where in layers.items()
    ]
    rest = f" and {len(named) - most} more" if len(named) > most else ""
    return ", ".join(named[:most]) + rest
