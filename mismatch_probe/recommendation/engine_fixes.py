"""What lowers the drift at its source: the engines' own settings, each with what it did where it was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mismatch_probe.export.measured import Measured, look_up, read, read_step
from mismatch_probe.findings import CATALOGUE
from mismatch_probe.recommendation.action import Action, Effect, as_estimate, estimate_at

_DEFAULT_REPLAY_SHARE = 0.5
_PRECISION_SHARE = 0.5
# Family-wise error of the knobs that are called better than the run's own setting.
_LEVEL = 0.05
_K3 = "token K3"


@dataclass(frozen=True, slots=True)
class Switch:
    """A yes or no with the actions that explain it."""

    on: bool
    actions: tuple[Action, ...] = ()


def weight_sync_actions(result: Mapping[str, Any]) -> tuple[Action, ...]:
    """What would ruin training at its first weight sync."""
    for item in result.get("findings") or []:
        if item.get("code") == "MP601":
            effect = Effect(
                "K3 between the rollout engine before and after it loads the weights that it has",
                "nats",
                estimate_at(result, "weight_sync.change.k3"),
                None,
                None,
                "none: a fresh engine has no load behind it, and this run is what it then gives",
                "weight_sync.change",
            )
            return (
                Action(
                    "MP601",
                    "engine",
                    "start a fresh rollout engine for each update: its own weight update breaks it",
                    str(item.get("detail")),
                    read(result, "weight_sync.change.mean_abs"),
                    (effect,),
                ),
            )
    return ()


def replay_switch(result: Mapping[str, Any]) -> Switch:
    """Routing replay, by the share of K3 that forcing the rollout's experts takes away."""
    explained = read(result, "routing.replay.explained")
    if explained is None:
        return Switch(False)
    bar = read(result, "bars.replay_explained")
    share = _DEFAULT_REPLAY_SHARE if bar is None else bar.value
    flips = read(result, "routing.token_any_flip_rate")
    flipping = (
        "" if flips is None else f"; {100 * flips.value:.3g} % of tokens have a layer with other experts"
    )
    effect = Effect(
        _K3,
        "nats",
        estimate_at(result, "routing.replay.k3_forward"),
        estimate_at(result, "routing.replay.k3_replay"),
        estimate_at(result, "routing.replay.explained"),
        "share of K3 removed",
        "routing.replay",
    )
    # Where forcing a forward's own experts changes it, what replay is said to explain holds that too.
    untrue = any(item.get("code") == "MP404" for item in result.get("findings") or [])
    estimate = estimate_at(result, "routing.replay.explained")
    by_chance = estimate is not None and estimate.ci_low is not None and estimate.ci_low <= 0
    # Where no expert differs, replay has nothing to force, whatever the ratio of two noisy numbers says.
    if explained.value >= share and not untrue and not by_chance and (flips is None or flips.value > 0):
        because = (
            f"with the rollout's experts forced, token K3 falls by {100 * explained.value:.0f} %{flipping}"
        )
        return Switch(
            True, (Action("MP402", "engine", "turn routing replay (R3) on", because, explained, (effect,)),)
        )
    because = (
        f"with the rollout's experts forced, token K3 changes by {-100 * explained.value:+.0f} %{flipping}"
    )
    if by_chance and explained.value > 0:
        because += "; the interval holds 0, so that may be chance"
    if untrue:
        because += "; but forcing a forward's own experts changes it too (MP404), so that number is not of replay alone"
    return Switch(
        False, (Action("MP403", "avoid", "leave routing replay off", because, explained, (effect,)),)
    )


def head_switch(result: Mapping[str, Any]) -> Switch:
    """A float32 output head where the lattice shows that it is not; else precision where rounding is most of it."""
    for check in look_up(result, "data_quality.checks") or []:
        if check.get("code") == "MP109" and check.get("status") == "fail":
            observed = check.get("observed")
            measured = (
                Measured("data_quality.checks[MP109].observed", float(observed))
                if observed is not None
                else None
            )
            effect = _knob_effect(result, "train-float32-head")
            action = Action(
                "MP109",
                "engine",
                "compute the output head in float32",
                str(check.get("detail")),
                measured,
                () if effect is None else (effect,),
                None
                if effect is not None
                else "not measured here: mismatch-probe ablate RUN --knob train-float32-head does it for the trainer",
            )
            return Switch(True, (action,))
    share = _precision_share(result)
    if share is None or share.value < _PRECISION_SHARE:
        return Switch(False)
    # Where both sides round alike, the trainer's rounding is no part of what they disagree about.
    if _made_worse_or_level(result, "train/reference"):
        return Switch(False)
    because = f"rounding in the trainer's own forward is {100 * share.value:.0f} % of the token K3"
    action = Action(
        "MP201",
        "engine",
        "raise the trainer's precision (float16, or float32 where it is cheap) before correcting for its rounding",
        because,
        share,
        _leg_effects(result, "train/reference"),
    )
    return Switch(False, (action,))


def self_disagreement_actions(result: Mapping[str, Any]) -> tuple[Action, ...]:
    """What to do where the rollout engine disagrees with itself."""
    for item in result.get("findings") or []:
        if item.get("code") == "MP204":
            measured = read(result, "legs.floor.decode_prefill_k3")
            effect = Effect(
                _K3,
                "nats",
                estimate_at(result, "token.k3"),
                None,
                estimate_at(result, "legs.floor.decode_prefill_k3"),
                "K3 of its decode against its own prefill; what mending it leaves was not measured",
                "legs.floor",
            )
            return (
                Action(
                    "MP204", "engine", CATALOGUE["MP204"].advice, str(item.get("detail")), measured, (effect,)
                ),
            )
    return ()


def knob_actions(result: Mapping[str, Any]) -> tuple[Action, ...]:
    """Settings that an ablation of this run found better than its own, beyond chance after Holm's correction."""
    found = []
    for row in look_up(result, "ablation.rows") or []:
        change = row.get("change") or {}
        p_holm = change.get("p_holm")
        k3 = as_estimate(change.get("k3_change"))
        if not row.get("in_effect") or p_holm is None or p_holm > _LEVEL or k3 is None or k3.value is None:
            continue
        if k3.value >= 0:
            continue
        name = str(row.get("knob"))
        effect = _knob_effect(result, name)
        because = f"the ablation changed token K3 by {k3.value:.3g} nats with it (p = {p_holm:.2g} after Holm's correction)"
        found.append(
            Action(
                "MP201",
                "engine",
                f"run the {row.get('side')} side with: {row.get('changes')} ({name})",
                because,
                Measured(f"ablation.rows[{name}].change.k3_change", k3.value),
                () if effect is None else (effect,),
            )
        )
    return tuple(sorted(found, key=lambda action: action.measured.value if action.measured else 0.0))


def cause_actions(result: Mapping[str, Any], covered: Iterable[str] = ()) -> tuple[Action, ...]:
    """What mends each cause that the diagnosis named, the most certain first.

    Args:
        result: result.json.
        covered: Causes that another action speaks of already.
    """
    from mismatch_probe.causes.catalogue import CAUSES

    found = []
    known = set(covered)
    for named in look_up(result, "causes.diagnosis.causes") or []:
        entry = CAUSES.get(str(named.get("cause")))
        # What training does with stale or rare tokens is the correction's part, not the engines'.
        if entry is None or entry.family == "training" or entry.id in known:
            continue
        numbers = [fact for fact in named.get("facts") or [] if isinstance(fact.get("value"), int | float)]
        measured = Measured(str(numbers[0]["where"]), float(numbers[0]["value"])) if numbers else None
        step = entry.knob[0].lower() + entry.knob[1:].rstrip(".")
        because = f"{entry.title}: {named.get('because')}"
        no_effect = "not measured here: record and score again with it mended"
        found.append(Action(entry.code, "engine", step, because, measured, no_effect=no_effect))
    return tuple(found)


def _knob_effect(result: Mapping[str, Any], name: str) -> Effect | None:
    for row in look_up(result, "ablation.rows") or []:
        change = as_estimate((row.get("change") or {}).get("k3_change"))
        if row.get("knob") == name and change is not None:
            return Effect(
                _K3,
                "nats",
                estimate_at(result, "ablation.k3"),
                None,
                change,
                "change of K3",
                f"ablation.rows[{name}]",
            )
    return None


def _made_worse_or_level(result: Mapping[str, Any], leg: str) -> bool:
    """Whether a leg was compared with the trainer's own forward and is not closer to the rollout beyond chance."""
    for row in look_up(result, "legs.comparisons") or []:
        if row.get("leg") == leg and row.get("baseline") == "train/forward":
            change, p_holm = as_estimate(row.get("k3_difference")), row.get("p_holm")
            return (
                change is None
                or change.value is None
                or change.value >= 0
                or p_holm is None
                or p_holm > _LEVEL
            )
    return False


def _leg_effects(result: Mapping[str, Any], leg: str) -> tuple[Effect, ...]:
    for row in look_up(result, "legs.comparisons") or []:
        change = as_estimate(row.get("k3_difference"))
        if row.get("leg") == leg and row.get("baseline") == "train/forward" and change is not None:
            before = estimate_at(result, "token.k3")
            source = f"legs.comparisons[{leg}]"
            return (Effect(_K3, "nats", before, None, change, "change of K3", source),)
    return ()


def _precision_share(result: Mapping[str, Any]) -> Measured | None:
    rounding = read_step(result, "train/forward", "train/reference", "k3")
    total = read(result, "token.k3")
    if rounding is None or total is None or total.value <= 0:
        return None
    return Measured(f"{rounding.path} / token.k3", rounding.value / total.value)
