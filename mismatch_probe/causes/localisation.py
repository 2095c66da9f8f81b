"""Which layer is wrong: errors of each unit when both sides are given the same input.

Where hidden states drift apart gradually, the first layer above a threshold says little. The *local* error of a unit is
what it adds by itself: the training side is fed the rollout's own input of that unit, so whatever came before is the same
for both. It is held against what rounding does to that very unit (the distance of the nearer side from float32 on the same
input) and against the same unit of the other layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mismatch_probe.engines.layer_sites import EMBEDDING, FINAL_NORM, HEAD, ORDER, STREAM, key
from mismatch_probe.errors import InconclusiveError

States = Mapping[str, npt.NDArray[np.floating]]

ROUNDING_BAR = 3.0
"""Without peers, and for a unit that differs in all layers: so many times what rounding does to it is no rounding."""
PEER_BAR = 3.0
"""A unit stands out if it is beyond this many times the median of the same unit of the other layers, or of ..."""
LEAST_PEER = 0.5
"""... this, where the others are closer: two roundings that know nothing of each other come to 1.4 at most."""
MIN_PEERS = 3
_OUTSIDE = (EMBEDDING, FINAL_NORM, HEAD)


@dataclass(slots=True)
class ErrorSums:
    """Sums over tokens of one unit, which add up over sequences.

    Attributes:
        error: Squared distance between training side and rollout.
        rounding: Squared distance between training side and float32.
        other: Squared distance between rollout and the same float32.
        size: Squared length of what the rollout's unit gave (for a layer: of what it added to the stream).
        tokens: How many.
    """

    error: float = 0.0
    rounding: float = 0.0
    other: float = 0.0
    size: float = 0.0
    tokens: int = 0

    @property
    def floor(self) -> float:
        """What rounding does: the nearer side's squared distance from float32, so that no side's fault hides itself."""
        return min(self.rounding, self.other)

    def add(
        self,
        rollout: npt.NDArray[np.floating],
        train: npt.NDArray[np.floating],
        reference: npt.NDArray[np.floating],
        base: npt.NDArray[np.floating] | None = None,
    ) -> None:
        """Adds the tokens of a sequence.

        Args:
            rollout: float [tokens, width] or [tokens].
            train: Likewise, of the training side on the same input.
            reference: Likewise, of the training side in float32 on the same input.
            base: What `rollout` is measured from, such as the stream before the layer; None is 0.
        """
        one, other, exact = (np.asarray(rows, dtype=np.float64) for rows in (rollout, train, reference))
        self.error += float(np.sum((other - one) ** 2))
        self.rounding += float(np.sum((other - exact) ** 2))
        self.other += float(np.sum((one - exact) ** 2))
        self.size += float(np.sum((one if base is None else one - base) ** 2))
        self.tokens += len(one)


@dataclass(frozen=True, slots=True)
class UnitError:
    """What one unit does by itself.

    Attributes:
        layer: Of the decoder, None for the embedding, the final norm and the head.
        unit: Name of `layer_sites`.
        local: Relative error: distance between the sides over the size of what the unit gives; for the head, root mean
            square of log-probability differences in nats.
        rounding: The same between float32 and the side that is nearer to it: what rounding does here.
        farther: The side that is farther from float32 on the training side's weights, "rollout" or "train"; None where the
            unit has no finding. A difference of weights shows as "rollout".
        over_rounding: `local` over `rounding`; None where rounding does nothing and the sides agree.
        over_peers: `over_rounding` over the median of the same unit of the other layers; None with fewer than 3 peers.
        exact: The sides agree in every bit.
        finding: "stands out" (beyond rounding, and its peers are not), "everywhere" (beyond rounding, and so are its
            peers), or None.
    """

    layer: int | None
    unit: str
    local: float
    rounding: float
    over_rounding: float | None
    over_peers: float | None
    exact: bool
    finding: Literal["stands out", "everywhere"] | None
    farther: Literal["rollout", "train"] | None


@dataclass(frozen=True, slots=True)
class LayerDrift:
    """How far apart the streams are after one layer of a forward as it is.

    Attributes:
        layer: Of the decoder.
        accumulated: Relative distance between the sides.
        rounding: The same between the training side's dtype and float32.
    """

    layer: int
    accumulated: float
    rounding: float


@dataclass(frozen=True, slots=True)
class Location:
    """Where the sides part.

    Attributes:
        units: Every unit, in the order of computation.
        layers: Accumulated error after every layer.
        first: The first unit whose inputs agree and whose outputs do not, whole layers left out where one of their modules
            was named; None where every unit stays within rounding.
        ranked: Units with a finding, farthest beyond rounding first.
        sentence: What it comes to.
    """

    units: tuple[UnitError, ...]
    layers: tuple[LayerDrift, ...]
    first: UnitError | None
    ranked: tuple[UnitError, ...]
    sentence: str


class LocationSums:
    """Takes sequences one by one."""

    def __init__(self) -> None:
        self._local: dict[tuple[int | None, str], ErrorSums] = {}
        self._free: dict[int, ErrorSums] = {}

    def add(
        self,
        rollout: States,
        free: Sequence[States],
        substituted: Sequence[States],
        head: npt.NDArray[np.floating] | None,
    ) -> None:
        """Adds one sequence.

        Args:
            rollout: States of the rollout engine.
            free: Of the training side's own forward, in its dtype and in float32.
            substituted: Of its units on the rollout's inputs, in its dtype and in float32.
            head: float [response], the rollout's log-probabilities by prefill, nats; None leaves the head out.

        Raises:
            InconclusiveError: A state is not finite or of another shape on the two sides.
        """
        train, reference = substituted
        for name in train.keys() & reference.keys():
            place, unit = _split(name)
            if unit == HEAD:
                found = head
            else:
                found = rollout.get(name if unit != "attention" else key(place or 0, "o_proj", "in"))
                if unit == "activation":
                    found = rollout.get(key(place or 0, "down_proj", "in"))
            if found is None:
                continue
            _check(name, found, train[name])
            base = rollout.get(key(place or 0, STREAM, "in")) if unit == STREAM else None
            size = np.ones(len(found)) if unit == HEAD else None
            sums = self._local.setdefault((place, unit), ErrorSums())
            sums.add(found, train[name], reference[name], base)
            if size is not None:
                # Log-probabilities are differences already: the error is in nats, not relative.
                sums.size = float(sums.tokens)
        for name in free[0].keys() & free[1].keys():
            place, unit = _split(name)
            found = rollout.get(name)
            if found is None:
                continue
            _check(name, found, free[0][name])
            if unit == EMBEDDING:
                self._local.setdefault((None, EMBEDDING), ErrorSums()).add(
                    found, free[0][name], free[1][name]
                )
            elif place is not None:
                self._free.setdefault(place, ErrorSums()).add(found, free[0][name], free[1][name])

    def location(self) -> Location:
        """What all sequences say.

        Raises:
            InconclusiveError: No unit could be compared.
        """
        if not self._local:
            raise InconclusiveError(
                "no hidden state could be compared", hint="the model's modules have other names"
            )
        ratios = {place: _over(sums) for place, sums in self._local.items()}
        units = [self._unit(place, ratios) for place in sorted(self._local, key=_order)]
        layers = [
            LayerDrift(layer, _relative(sums.error, sums.size), _relative(sums.rounding, sums.size))
            for layer, sums in sorted(self._free.items())
        ]
        flagged = [unit for unit in units if unit.finding is not None]
        modules = [unit for unit in flagged if unit.unit != STREAM]
        ranked = sorted(flagged, key=lambda unit: -(unit.over_rounding or 0.0))
        standing = [unit for unit in modules or flagged if unit.finding == "stands out"]
        first = next(iter(standing or modules or flagged), None)
        return Location(
            tuple(units), tuple(layers), first, tuple(ranked), _sentence(first, flagged, len(layers))
        )

    def _unit(
        self, place: tuple[int | None, str], ratios: Mapping[tuple[int | None, str], float | None]
    ) -> UnitError:
        layer, unit = place
        sums = self._local[place]
        over = ratios[place]
        peers = [
            value or 0.0
            for (other, name), value in ratios.items()
            if name == unit and other not in (layer, None)
        ]
        typical = float(np.median(peers)) if len(peers) >= MIN_PEERS else None
        over_peers = None if over is None or not typical else over / typical
        finding: Literal["stands out", "everywhere"] | None = None
        if over is not None:
            bar = ROUNDING_BAR if typical is None else PEER_BAR * max(typical, LEAST_PEER)
            everywhere = typical is not None and min(over, typical) > ROUNDING_BAR
            finding = "stands out" if over > bar else "everywhere" if everywhere else None
        return UnitError(
            layer=layer,
            unit=unit,
            local=_relative(sums.error, sums.size),
            rounding=_relative(sums.floor, sums.size),
            over_rounding=over,
            over_peers=over_peers,
            exact=sums.error == 0.0,
            finding=finding,
            farther=None if finding is None else "rollout" if sums.other >= sums.rounding else "train",
        )


def _over(sums: ErrorSums) -> float | None:
    if sums.error == 0.0:
        return 0.0 if sums.floor else None
    # Where rounding does nothing (an embedding, a sign) any difference is beyond it; the smallest float32 step bounds it.
    floor = max(sums.floor, sums.size * float(np.finfo(np.float32).eps) ** 2)
    return float(np.sqrt(sums.error / floor)) if floor else None


def _relative(squared: float, size: float) -> float:
    return float(np.sqrt(squared / size)) if size else 0.0


def _split(name: str) -> tuple[int | None, str]:
    first, _, rest = name.partition(".")
    return (int(first), rest.partition(".")[0]) if first.isdigit() else (None, first)


def _order(place: tuple[int | None, str]) -> tuple[int, int]:
    layer, unit = place
    if layer is None:
        return (-1, 0) if unit == EMBEDDING else (1 << 30, _OUTSIDE.index(unit))
    return (layer, ORDER.index(unit))


def _check(name: str, rollout: npt.NDArray[np.floating], train: npt.NDArray[np.floating]) -> None:
    if rollout.shape != train.shape:
        raise InconclusiveError(
            f"{name} is {rollout.shape} on the rollout side and {train.shape} on the training side"
        )
    if not (np.isfinite(rollout).all() and np.isfinite(train).all()):
        raise InconclusiveError(
            f"{name} is not finite", hint="a NaN inside a model is a bug of its own: look there first"
        )


def describe(unit: UnitError) -> str:
    """A unit in words: "layer 3 qkv_proj"."""
    return unit.unit if unit.layer is None else f"layer {unit.layer} {unit.unit}"


def _sentence(first: UnitError | None, flagged: Iterable[UnitError], num_layers: int) -> str:
    if first is None:
        return (
            "No module stands out: each one does, on the other side's own input, no more than rounding does."
        )
    times = f"{first.over_rounding or 0.0:.3g} times what rounding does to it"
    if first.finding == "everywhere":
        count = sum(unit.unit == first.unit for unit in flagged)
        return f"{first.unit} differs in {count} of {num_layers} layers, {times}: the sides compute it differently."
    farther = {"rollout": "the rollout engine, or its weights, is", "train": "the training side is"}
    where = farther[first.farther or "rollout"]
    return (
        f"The sides part at {describe(first)}: given the same input its output differs by {times}; "
        f"{where} farther from float32."
    )
