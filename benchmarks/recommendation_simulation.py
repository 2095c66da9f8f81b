"""How often the numbers behind a recommendation hold, on drift of known law.

    python benchmarks/recommendation_simulation.py --repeats 200 > recommendation.json

For each law and number of prompts, data sets are drawn and put through the code of the recommendation. Counted: how often the
95 % intervals of what the goals compare hold the population's value (200,000 responses) for VESPO as its authors set it
and for no correction; and how many of 20 fresh batches of as many prompts lie beyond each alarm, where one in a thousand
is meant. The population's far tenth is its own tenth, not that of a data set, so what the interval owes to that is counted.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.recommendation.candidates import put_forward
from mismatch_probe.recommendation.monitor import watch
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.weights import get_method

FloatArray = npt.NDArray[np.float64]
Law = Callable[[np.random.Generator, FloatArray], FloatArray]
SAMPLES = 4
NUMBERS = ("influence", "signal", "effective_responses")
BATCHES = 20
POPULATION = 200_000


def gaussian(generator: np.random.Generator, scale: FloatArray) -> FloatArray:
    """Independent errors of a logit, the same everywhere."""
    return generator.normal(-(0.05**2) / 2, 0.05, len(scale))


def uneven(generator: np.random.Generator, scale: FloatArray) -> FloatArray:
    """Laplace errors; prompts differ in size."""
    return generator.laplace(-1e-3, 0.035, len(scale)) * scale


def outliers(generator: np.random.Generator, scale: FloatArray) -> FloatArray:
    """Small errors, and one token in 500 that is off by about 0.7 nats."""
    far = generator.random(len(scale)) < 0.002
    return np.where(
        far, generator.normal(-0.2, 0.7, len(scale)), generator.normal(-2e-4, 0.02, len(scale)) * scale
    )


LAWS: dict[str, Law] = {"gaussian": gaussian, "uneven prompts": uneven, "outlier tokens": outliers}


def draw(law: Law, prompts: int, seed: int) -> Responses:
    """Responses of 20 to 300 tokens, four a prompt, half of them with A > 0."""
    generator = np.random.default_rng(seed)
    sequences = prompts * SAMPLES
    lengths = np.clip(np.exp(generator.normal(4.2, 0.6, sequences)), 20, 300).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    clusters = np.repeat(np.arange(prompts), SAMPLES)
    scale = np.exp(generator.normal(0, 0.35, prompts) - 0.35**2 / 2)[clusters]
    log_ratio = law(generator, np.repeat(scale, lengths))
    rollout = np.minimum(-1e-3, -generator.exponential(0.5, len(log_ratio)) - np.maximum(log_ratio, 0.0))
    advantages = np.tile([1.0, -1.0], sequences // 2) * generator.uniform(0.5, 1.5, sequences)
    return Responses.of(rollout + log_ratio, rollout, offsets, clusters, advantages)


def values(responses: Responses, resamples: int) -> dict[str, dict[str, Any]]:
    """What the goals compare, for VESPO and for no correction."""
    found = put_forward({}, responses, resamples=resamples).by_key
    return {key: {name: getattr(found[key], name) for name in NUMBERS} for key in ("vespo", "none")}


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--prompts", type=int, nargs="+", default=[32, 128])
    arguments = parser.parse_args()
    table = []
    for name, law in LAWS.items():
        truth = values(draw(law, POPULATION // SAMPLES, 10**6), 0)
        for prompts in arguments.prompts:
            held: dict[str, int] = defaultdict(int)
            given: dict[str, int] = defaultdict(int)
            beyond: dict[str, int] = defaultdict(int)
            tried: dict[str, int] = defaultdict(int)
            for seed in range(arguments.repeats):
                responses = draw(law, prompts, seed)
                for key, numbers in values(responses, 500).items():
                    for number, estimate in numbers.items():
                        if estimate.ci_low is None:
                            continue
                        given[f"{key} {number}"] += 1
                        true = truth[key][number].value
                        slack = 1e-9 * abs(true)
                        held[f"{key} {number}"] += int(
                            estimate.ci_low - slack <= true <= estimate.ci_high + slack
                        )
                vespo = get_method("vespo")
                alarms = {row.name: row for row in watch({}, responses, vespo)}
                for batch in range(BATCHES):
                    fresh = draw(law, prompts, 10**5 + seed * BATCHES + batch)
                    here = {row.name: row.expected.value for row in watch({}, fresh, vespo) if row.expected}
                    for row in alarms.values():
                        if row.alarm is None:
                            continue
                        tried[row.name] += 1
                        value = here[row.name]
                        beyond[row.name] += int(
                            value > row.alarm if row.side == "above" else value < row.alarm
                        )
            table.append(
                {
                    "law": name,
                    "prompts": prompts,
                    "repeats": arguments.repeats,
                    "coverage": {key: [held[key], given[key]] for key in given},
                    "alarms": {key: [beyond[key], tried[key]] for key in tried},
                }
            )
            print(json.dumps(table[-1]), flush=True)


if __name__ == "__main__":
    main()
