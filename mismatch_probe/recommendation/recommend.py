"""The section `recommendation` of a result: ranked actions with their effects, the correction, what to watch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mismatch_probe.errors import ConfigError
from mismatch_probe.export.measured import Measured, look_up, read
from mismatch_probe.findings import CATALOGUE
from mismatch_probe.recommendation.action import Action, Effect
from mismatch_probe.recommendation.assumptions import assumptions
from mismatch_probe.recommendation.candidates import BASELINE, Candidates, put_forward
from mismatch_probe.recommendation.engine_fixes import (
    cause_actions,
    head_switch,
    knob_actions,
    replay_switch,
    self_disagreement_actions,
    weight_sync_actions,
)
from mismatch_probe.recommendation.goals import DEFAULT_GOAL, GOALS, Choice, choose
from mismatch_probe.recommendation.monitor import watch
from mismatch_probe.sign_balance import shifted_for_sure
from mismatch_probe.simulate.responses import Responses

_DEFAULT_BALANCE = 0.8
_EFFECTS = {
    "influence": "share of the update from the most off-policy tenth of the responses",
    "signal": "share of the signal kept",
    "effective_responses": "effective responses for each one generated",
    "kept_fraction": "share of tokens kept",
}
_BEFORE_FIXES = (
    "correction, thresholds and alarms are fitted to this run as it is, without the engine fixes that are put forward: "
    "measure again once these are made"
)


def recommend(
    result: Mapping[str, Any],
    responses: Responses | None,
    *,
    goal: str = DEFAULT_GOAL,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The `recommendation` section of result.json.

    Order of the actions: what makes the numbers wrong, what makes the run too small, what would ruin training at its first
    weight sync, causes that the diagnosis named, what else lowers the drift at its source (routing, precision, the engine
    against itself, knobs that an ablation found better), the correction for what is left, and what to stay away from.

    Args:
        result: result.json, all other sections filled; missing ones are left out of account.
        responses: The run's responses, or None where its values are no log-probabilities.
        goal: One of `GOALS`.
        resamples: Bootstrap resamples.
        seed: Of all that is random.

    Returns:
        goal, summary, actions, method, parameters, weight_reads, routing_replay, fp32_head, candidates, goals (what serves
        each goal, with the runner-up), assumptions, reads_by_framework, monitor. On numbers that are not to be trusted the
        method is None and nothing is fitted.

    Raises:
        ConfigError: An unknown goal.
    """
    if goal not in GOALS:
        raise ConfigError(f"unknown goal {goal!r}", hint=f"known: {', '.join(GOALS)}")
    broken = _broken(result)
    if broken or responses is None:
        broken = [*broken, *cause_actions(result)]
        names = ", ".join(action.code for action in broken) or "no usable values"
        summary = (
            f"Mend the measurement first ({names}): no correction can be fitted to "
            "numbers that are not what they seem."
        )
        return _section(goal, summary, broken)
    responses = _with_signs(responses)
    replay, head = replay_switch(result), head_switch(result)
    source = [*(replay.actions if replay.on else ()), *head.actions]
    source += [*self_disagreement_actions(result), *knob_actions(result)]
    first = [*_too_small(result), *weight_sync_actions(result)]
    # A cause with evidence of its own comes before what lowers drift of whatever cause.
    before = [*first, *cause_actions(result, _covered([*first, *source])), *source]
    after = () if replay.on else replay.actions
    if look_up(result, "token.exact"):
        nothing = Action(
            "MP901",
            "correction",
            "add no correction for mismatch",
            "the two sides agree in every bit on these tokens",
            None,
            no_effect="there is nothing to correct",
        )
        actions = [*before, nothing, *after]
        chosen: dict[str, Any] = {"method": "ppo_clip", "parameters": {}, "weight_reads": "pi/pi_old"}
        rest: dict[str, Any] = {
            "assumptions": assumptions(result, responses, "pi/pi_old"),
            "monitor": watch(result, responses, None, seed=seed),
        }
    else:
        candidates = put_forward(result, responses, resamples=resamples, seed=seed)
        choices = {name: choose(result, candidates, name, resamples=resamples, seed=seed) for name in GOALS}
        actions, chosen, rest = _corrected(result, responses, candidates, choices, goal, seed=seed)
        actions = [*before, *actions, *_stay_away(result, chosen["method"]), *after]
    if any(action.kind == "engine" for action in actions):
        rest["assumptions"] = [*rest["assumptions"], _BEFORE_FIXES]
    section = _section(goal, _in_a_sentence(actions), actions)
    section |= {**chosen, "routing_replay": replay.on, "fp32_head": head.on, **rest}
    return {**section, "reads_by_framework": _reads_by_framework(result, section)}


def _with_signs(responses: Responses) -> Responses:
    """The prompts that have a token that counts; with both signs of every response where no advantage is other than 0."""
    counted = np.unique(responses.clusters[responses.lengths() > 0])
    if len(counted) < responses.num_prompts:
        responses = responses.subset(counted)
    if np.any(responses.advantages != 0):
        return responses
    return Responses.of(
        responses.train,
        responses.rollout,
        responses.offsets,
        responses.clusters,
        None,
        old_logprobs=responses.old,
        mask=responses.mask,
    )


def _covered(actions: Iterable[Action]) -> set[str]:
    """Causes that these actions speak of."""
    spoken = {
        "MP601": ("broken-reload",),
        "MP402": ("moe-routing",),
        "MP109": ("bf16-head",),
        "MP204": ("engine-self-disagreement",),
    }
    return {cause for action in actions for cause in spoken.get(action.code, ())}


def _corrected(
    result: Mapping[str, Any],
    responses: Responses,
    candidates: Candidates,
    choices: Mapping[Any, Choice],
    goal: Any,
    *,
    seed: int,
) -> tuple[list[Action], dict[str, Any], dict[str, Any]]:
    """The action of the correction, what of the section follows from it, and what else was worked out."""
    from mismatch_probe.weights import get_method

    choice = choices[goal]
    section = {"candidates": candidates.by_key, "goals": dict(choices)}
    if choice.chosen is None:
        nothing = Action(
            "MP502", "correction", "leave out a correction", choice.because, None, no_effect=choice.because
        )
        chosen = {"method": "ppo_clip", "parameters": {}, "weight_reads": "pi/pi_old"}
        rest = {
            **section,
            "assumptions": assumptions(result, responses, None),
            "monitor": watch(result, responses, None, seed=seed),
        }
        return [nothing], chosen, rest
    candidate = candidates.by_key[choice.chosen]
    baseline = candidates.by_key[BASELINE]
    path = f"recommendation.candidates.{choice.chosen}"
    effects = tuple(
        Effect(
            words,
            "share",
            getattr(baseline, name),
            getattr(candidate, name),
            None,
            "after the action",
            f"{path}.{name}",
        )
        for name, words in _EFFECTS.items()
    )
    number = getattr(candidate, choice.number)
    because = choice.because
    vespo = candidates.by_key["vespo"]
    if vespo.against and candidate.method != "vespo":
        because += f"; VESPO is out: {'; '.join(vespo.against)}"
    if choice.runner_up is not None:
        because += f"; runner-up {candidates.by_key[choice.runner_up].label}"
    action = Action(
        _code(choice, candidates),
        "correction",
        _words(candidate.method, candidate.parameters),
        because,
        Measured(f"{path}.{choice.number}", number.value),
        effects,
    )
    method = get_method(candidate.method, **candidate.parameters)
    rest = {
        **section,
        "assumptions": assumptions(result, responses, candidate.reads, candidate.fit),
        "monitor": watch(result, responses, method, kept=candidate.kept_fraction, seed=seed),
    }
    chosen = {
        "method": candidate.method,
        "parameters": dict(candidate.parameters),
        "weight_reads": candidate.reads,
    }
    return [action], chosen, rest


def _code(choice: Choice, candidates: Candidates) -> str:
    """The finding that the choice belongs to: why it is not VESPO, or the drift itself."""
    against = " ".join(candidates.by_key["vespo"].against)
    if choice.chosen in ("vespo", "vespo_tuned") or not against:
        return "MP205" if choice.chosen == "icepop" else "MP201"
    if choice.chosen == "icepop":
        return "MP205"
    return "MP501" if "times as much" in against else "MP502"


def _words(method: str, parameters: Mapping[str, Any]) -> str:
    if method == "vespo":
        shown = ", ".join(f"{name} {float(value):.3g}" for name, value in parameters.items())
        return f"correct with VESPO, W = pi / mu ({shown})"
    p = {name: f"{float(value):g}" for name, value in parameters.items()}
    words = {
        "token_tis": "truncate token weights pi_old / mu at {cap}",
        "icepop": "drop tokens with pi_old / mu outside {low} to {high} (IcePop)",
        "seq_tis": "truncate the weight of a response, the product of pi_old / mu, at {cap}",
        "seq_mis": "drop responses whose product of pi_old / mu is outside {low} to {high}; weigh the others by it",
        "geo_rs": "drop responses whose exp(mean log pi_old / mu) is outside {low} to {high}",
        "k3_rs": "drop responses whose mean K3 is above {bound} nats a token",
    }
    return words[method].format(**p)


def _section(goal: str, summary: str, actions: list[Action]) -> dict[str, Any]:
    return {
        "goal": goal,
        "summary": summary,
        "actions": [action.section(rank) for rank, action in enumerate(actions, start=1)],
        "method": None,
        "parameters": {},
        "weight_reads": None,
        "routing_replay": False,
        "fp32_head": False,
        "candidates": {},
        "goals": {},
        "assumptions": [],
        "monitor": (),
        "reads_by_framework": {},
    }


def _in_a_sentence(actions: list[Action]) -> str:
    steps = [action.action for action in actions[:3]]
    # Behind three engine fixes there is still a correction to be made.
    steps += [f"then {action.action}" for action in actions[3:] if action.kind == "correction"]
    return "; ".join(step[0].upper() + step[1:] if i == 0 else step for i, step in enumerate(steps)) + "."


def _reads_by_framework(result: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, str]:
    """What the weights contain where each framework's exported config is used."""
    from mismatch_probe.export import available_exporters
    from mismatch_probe.export.exporter import read_contents
    from mismatch_probe.result import to_json

    whole = {**result, "recommendation": to_json(section)}
    return {name: read_contents(whole, name) for name in available_exporters()}


def _broken(result: Mapping[str, Any]) -> list[Action]:
    if look_up(result, "data_quality.trusted") is not False:
        return []
    actions = []
    for check in look_up(result, "data_quality.checks") or []:
        if check.get("status") != "fail" or check.get("severity") == "info":
            continue
        code = str(check.get("code"))
        entry = CATALOGUE.get(code)
        observed = check.get("observed")
        measured = (
            Measured(f"data_quality.checks[{code}].observed", float(observed))
            if isinstance(observed, int | float)
            else None
        )
        advice = entry.advice if entry is not None else "see the check"
        because = str(check.get("detail") or check.get("name"))
        no_effect = "the measurement has to be made again"
        actions.append(Action(code, "measurement", advice, because, measured, no_effect=no_effect))
    return actions


def _too_small(result: Mapping[str, Any]) -> list[Action]:
    if result.get("verdict") != "inconclusive":
        return []
    because = str(result.get("verdict_sentence") or "the run is too small for a verdict")
    measured = read(result, "token.num_tokens")
    advice = CATALOGUE["MP902"].advice
    return [
        Action("MP902", "measurement", advice, because, measured, no_effect="more data, narrower intervals")
    ]


def _stay_away(result: Mapping[str, Any], chosen: str) -> list[Action]:
    """Corrections that this drift breaks, so that nobody takes them up unawares."""
    bar = read(result, "bars.sign_balance")
    balance = _DEFAULT_BALANCE if bar is None else bar.value
    actions, broken = [], []
    for name, method in sorted((look_up(result, "weights") or {}).items()):
        ratio = read(result, f"weights.{name}.mass_ratio")
        if name == chosen or ratio is None or balance <= ratio.value <= 1 / balance:
            continue
        if not isinstance(method, Mapping) or not shifted_for_sure(method):
            continue
        label = method.get("label", name)
        broken.append((min(ratio.value, 1 / ratio.value if ratio.value else 0.0), str(label), ratio))
    no_effect = "it is what this drift would do, not what leaving it out does"
    if broken:
        broken.sort(key=lambda item: item[:2])
        _, worst, ratio = broken[0]
        because = f"on this drift {worst} weighs negative advantages {ratio.value:.3g} times as much as positive ones"
        if len(broken) > 1:
            because += ", " + ", ".join(f"{label} {item.value:.3g} times" for _, label, item in broken[1:])
        labels = [label for _, label, _ in broken]
        named = labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} or {labels[-1]}"
        actions.append(
            Action("MP501", "avoid", f"do not feed {named} with pi / mu", because, ratio, no_effect=no_effect)
        )
    horizon, longest = read(result, "sequence.length_law.horizon_tokens"), read(result, "sequence.max_length")
    if horizon is not None and longest is not None and longest.value > horizon.value:
        because = (
            f"responses reach {longest.value:.0f} tokens and plain sequence weights carry {horizon.value:.0f}"
        )
        advice = "do not use plain sequence-level importance weights"
        actions.append(Action("MP303", "avoid", advice, because, horizon, no_effect=no_effect))
    return actions
