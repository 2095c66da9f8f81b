"""Hidden states of the training side: what a scorer must offer so that a wrong layer can be located."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mismatch_probe.scorers.protocol import Scorer, ScoreRequest

States = dict[str, npt.NDArray[np.float32]]


@runtime_checkable
class LayerStateScorer(Scorer, Protocol):
    """A scorer that can be given the rollout engine's hidden states."""

    def read_layer_states(
        self, request: ScoreRequest, given: Mapping[str, npt.NDArray[np.float32]], *, temperature: float
    ) -> dict[str, States]:
        """Runs three forwards of one sequence and returns what came out of every unit.

        Args:
            request: The sequence; its routes are forced where states are substituted, so that a flip of the router does
                not look like a wrong expert.
            given: States of the rollout engine, as `LayerStateEngine.write_layer_states` wrote them, in float32.
            temperature: Of the sampling; for the head.

        Returns:
            By way of reading, float32 [prompt + response, width] by `layer_sites.key(layer, unit, "out")`:
            `free`: the forward as it is (`layer` and `embedding` only);
            `substituted`: every unit fed with the rollout's input, whole layers in a forward of their own. `head` is
            float32 [response], log-probabilities from the rollout's final hidden states, nats.

        Raises:
            CaptureError: The model has no decoder layers of a known kind.
        """
        ...
