"""From a result to what to do about it: ranked actions, each with the measurement that caused it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mismatch_probe.export.choice import Choice, choose_correction
from mismatch_probe.export.measured import Measured, look_up, read, read_step
from mismatch_probe.findings import CATALOGUE
from mismatch_probe.sign_balance import shifted_for_sure

_DEFAULT_REPLAY_SHARE = 0.5
_DEFAULT_BALANCE = 0.8
_PRECISION_SHARE = 0.5


def recommend(result: Mapping[str, Any]) -> dict[str, Any]:
    """The `recommendation` section of result.json.

    Order: what makes the numbers wrong, what makes the run too small, what would ruin training at its first weight
    sync, what lowers the drift at its source
    (routing, precision, the engine against itself), the correction for what is left, and what to stay away
    from.

    Args:
        result: result.json, all other sections filled; missing ones are left out of account.

    Returns:
        summary, actions (rank, code, action, because, measured), method, parameters, routing_replay,
        fp32_head, weight_reads. Without trusted numbers the method is None.
    """
    broken = _broken(result)
    if broken:
        names = ", ".join(action["code"] for action in broken)
        summary = (
            f"Mend the measurement first ({names}): no correction can be fitted to "
            "numbers that are not what they seem."
        )
        return _section(summary, broken, None, replay=False, head=False)
    replay = _replay(result)
    head = _head(result)
    first = replay.actions if replay.on else []
    actions = [*_too_small(result), *_weight_sync(result), *first, *head.actions, *_self_disagreement(result)]
    choice = choose_correction(result)
    actions.append(_act(choice.code, choice.action, choice.because, choice.measured))
    actions += _stay_away(result, choice)
    actions += [] if replay.on else replay.actions
    steps = [action["action"] for action in actions[:3]]
    summary = "; ".join(step[0].upper() + step[1:] if i == 0 else step for i, step in enumerate(steps)) + "."
    return _section(summary, actions, choice, replay=replay.on, head=head.on)


class _Switch:
    """A yes or no with the actions that explain it."""

    def __init__(self, on: bool, actions: list[dict[str, Any]]) -> None:
        self.on = on
        self.actions = actions


def _section(
    summary: str, actions: list[dict[str, Any]], choice: Choice | None, *, replay: bool, head: bool
) -> dict[str, Any]:
    return {
        "summary": summary,
        "actions": [{"rank": rank, **action} for rank, action in enumerate(actions, start=1)],
        "method": None if choice is None else choice.method,
        "parameters": {} if choice is None else dict(choice.parameters),
        "routing_replay": replay,
        "fp32_head": head,
        "weight_reads": None if choice is None else choice.reads,
    }


def _act(code: str, action: str, because: str, measured: Measured | None) -> dict[str, Any]:
    return {
        "code": code,
        "action": action,
        "because": because,
        "measured": None if measured is None else {"name": measured.path, "value": measured.value},
    }


def _broken(result: Mapping[str, Any]) -> list[dict[str, Any]]:
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
        actions.append(_act(code, advice, str(check.get("detail") or check.get("name")), measured))
    return actions


def _too_small(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    if result.get("verdict") != "inconclusive":
        return []
    because = str(result.get("verdict_sentence") or "the run is too small for a verdict")
    return [_act("MP902", CATALOGUE["MP902"].advice, because, read(result, "token.num_tokens"))]


def _replay(result: Mapping[str, Any]) -> _Switch:
    explained = read(result, "routing.replay.explained")
    if explained is None:
        return _Switch(False, [])
    bar = read(result, "bars.replay_explained")
    share = _DEFAULT_REPLAY_SHARE if bar is None else bar.value
    flips = read(result, "routing.token_any_flip_rate")
    flipping = (
        "" if flips is None else f"; {100 * flips.value:.3g} % of tokens have a layer with other experts"
    )
    # Where no expert differs, replay has nothing to force, whatever the ratio of two noisy numbers says.
    if explained.value >= share and (flips is None or flips.value > 0):
        because = (
            f"with the rollout's experts forced, token K3 falls by {100 * explained.value:.0f} %{flipping}"
        )
        return _Switch(True, [_act("MP402", "turn routing replay (R3) on", because, explained)])
    because = (
        f"with the rollout's experts forced, token K3 changes by {-100 * explained.value:+.0f} %{flipping}"
    )
    return _Switch(False, [_act("MP403", "leave routing replay off", because, explained)])


def _head(result: Mapping[str, Any]) -> _Switch:
    for check in look_up(result, "data_quality.checks") or []:
        if check.get("code") == "MP109" and check.get("status") == "fail":
            observed = check.get("observed")
            measured = (
                Measured("data_quality.checks[MP109].observed", float(observed))
                if observed is not None
                else None
            )
            because = str(check.get("detail"))
            return _Switch(True, [_act("MP109", "compute the output head in float32", because, measured)])
    share = _precision_share(result)
    if share is None or share.value < _PRECISION_SHARE:
        return _Switch(False, [])
    because = f"rounding in the trainer's own forward is {100 * share.value:.0f} % of the token K3"
    action = (
        "raise the trainer's precision (float16, or float32 where it is cheap) before "
        "correcting for its rounding"
    )
    return _Switch(False, [_act("MP201", action, because, share)])


def _precision_share(result: Mapping[str, Any]) -> Measured | None:
    rounding = read_step(result, "train/forward", "train/reference", "k3")
    total = read(result, "token.k3")
    if rounding is None or total is None or total.value <= 0:
        return None
    return Measured(f"{rounding.path} / token.k3", rounding.value / total.value)


def _weight_sync(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    for item in result.get("findings") or []:
        if item.get("code") == "MP601":
            measured = read(result, "weight_sync.change.mean_abs")
            action = "start a fresh rollout engine for each update: its own weight update breaks it"
            return [_act("MP601", action, str(item.get("detail")), measured)]
    return []


def _self_disagreement(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    for item in result.get("findings") or []:
        if item.get("code") == "MP204":
            measured = read(result, "legs.floor.decode_prefill_k3")
            return [_act("MP204", CATALOGUE["MP204"].advice, str(item.get("detail")), measured)]
    return []


def _stay_away(result: Mapping[str, Any], choice: Choice) -> list[dict[str, Any]]:
    """Corrections that this drift breaks, so that nobody takes them up unawares."""
    bar = read(result, "bars.sign_balance")
    balance = _DEFAULT_BALANCE if bar is None else bar.value
    actions, broken = [], []
    for name, method in sorted((look_up(result, "weights") or {}).items()):
        path = f"weights.{name}.mass_ratio"
        ratio = read(result, path)
        if name == choice.method or ratio is None or balance <= ratio.value <= 1 / balance:
            continue
        if not isinstance(method, Mapping) or not shifted_for_sure(method):
            continue
        label = method.get("label", name)
        broken.append((min(ratio.value, 1 / ratio.value if ratio.value else 0.0), str(label), ratio))
    if broken:
        broken.sort(key=lambda item: item[:2])
        _, worst, ratio = broken[0]
        because = f"on this drift {worst} weighs negative advantages {ratio.value:.3g} times as much as positive ones"
        if len(broken) > 1:
            because += ", " + ", ".join(f"{label} {item.value:.3g} times" for _, label, item in broken[1:])
        labels = [label for _, label, _ in broken]
        named = labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} or {labels[-1]}"
        actions.append(_act("MP501", f"do not feed {named} with pi / mu", because, ratio))
    horizon, longest = read(result, "sequence.length_law.horizon_tokens"), read(result, "sequence.max_length")
    if horizon is not None and longest is not None and longest.value > horizon.value:
        because = (
            f"responses reach {longest.value:.0f} tokens and plain sequence weights carry {horizon.value:.0f}"
        )
        actions.append(_act("MP303", "do not use plain sequence-level importance weights", because, horizon))
    return actions
