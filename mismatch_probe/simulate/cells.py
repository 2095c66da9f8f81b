"""One correction over groups of sequences: all of them, those of one sign, those of one range of lengths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.simulate.intervals import PromptSums, kish, quotient, ratio_of_quotients
from mismatch_probe.simulate.response import LengthBucket, SignSummary
from mismatch_probe.simulate.sums import EMPTY, Ground, SequenceSums
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.tails import rate_from_table

if TYPE_CHECKING:
    from mismatch_probe.weights import WeightMethod

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The sums of one correction, ready to be summarised for any group of sequences.

    Attributes:
        ground: Shared by all corrections.
        sums: Of this one.
        columns: What is summed by prompt, float64 [sequences] each.
        entry: |phi| summed over the entries of each sequence, and the largest of them.
        by_sequence: Whether an entry is a sequence rather than a token.
        resamples: Bootstrap resamples; 0 leaves out intervals.
        seed: Of the bootstrap.
    """

    ground: Ground
    sums: SequenceSums
    columns: dict[str, FloatArray]
    entry: tuple[FloatArray, FloatArray]
    by_sequence: bool
    resamples: int
    seed: int

    @classmethod
    def of(
        cls, method: WeightMethod, ground: Ground, sums: SequenceSums, *, resamples: int, seed: int
    ) -> Cells:
        """Columns of a method of tokens or of sequences."""
        by_sequence = method.level == "sequence"
        divisor = ground.lengths if by_sequence else np.ones(len(ground.lengths))
        entries = np.ones(len(ground.lengths)) if by_sequence else ground.lengths
        weight = sums.weight / divisor
        size = sums.size / divisor
        positive, negative = ground.advantages > 0, ground.advantages < 0
        amount = np.zeros(len(entries)) if ground.assumed else np.abs(ground.advantages)
        columns = {
            "entries": entries,
            "weight": weight,
            "scaled": weight / sums.scale,
            # phi is the same on all tokens of a sequence where the entry is the sequence.
            "squares": np.square(weight / sums.scale) if by_sequence else sums.squares,
            "positive": entries * positive,
            "positive_weight": weight * positive,
            "negative": entries * negative,
            "negative_weight": weight * negative,
            "tokens": ground.lengths,
            "kept": sums.kept,
            # Tokens of a sequence are dropped together by a method of sequences.
            "proxy": ground.lengths * ground.log_weight * by_sequence,
            "proxy_squares": ground.lengths * np.square(ground.log_weight) * by_sequence,
            "size": amount * ground.lengths,
            "gradient": amount * sums.weight,
        }
        largest = size if by_sequence else sums.largest
        return cls(ground, sums, columns, (size, largest), by_sequence, resamples, seed)

    def totals(self) -> dict[str, Any]:
        """Everything that `MethodResponse` says of all sequences together."""
        everything = np.ones(len(self.ground.lengths), dtype=bool)
        # Where signs are assumed each sequence is there twice.
        times = 2 if self.ground.assumed else 1
        return {
            **self._summary(everything, times, "no token"),
            **self._balance(everything, times),
            "sign_basis": "assumed" if self.ground.assumed else "advantage",
        }

    def sign(self, sign: float) -> SignSummary:
        """The sequences whose advantage has one sign."""
        here = self.ground.advantages * sign > 0
        missing = f"no advantage {'above' if sign > 0 else 'below'} 0"
        return SignSummary(
            sequences=int(here.sum()),
            tokens=int(self.ground.lengths[here].sum()),
            **self._summary(here, 1, missing),
        )

    def bucket(self, here: BoolArray) -> LengthBucket:
        """The sequences of one range of lengths."""
        times = 2 if self.ground.assumed else 1
        lengths = self.ground.lengths[here]
        return LengthBucket(
            low=int(lengths.min()),
            high=int(lengths.max()),
            n=int(here.sum()) // times,
            mean_log_weight=float(self.ground.log_weight[here].mean()),
            **self._summary(here, times, "no token"),
            **self._balance(here, times),
        )

    def _summary(self, here: BoolArray, times: int, missing: str) -> dict[str, Any]:
        prompt_sums = self._prompt_sums(here)
        entries = int(self.columns["entries"][here].sum()) // times
        tokens = int(self.ground.lengths[here].sum()) // times
        size, largest = (column[here] for column in self.entry)
        total = float(size.sum())
        reason = "the run has no advantages" if self.ground.assumed else "every advantage is 0"
        absent = missing if not here.any() else None

        return {
            "mean": prompt_sums.estimate(("weight", "entries"), quotient, n=entries, missing=missing),
            "ess": prompt_sums.estimate(
                ("scaled", "squares", "entries"),
                kish,
                n=entries,
                missing=absent or "every weight is 0",
                highest=1.0,
            ),
            "kept_fraction": self._kept(prompt_sums, times, tokens, missing),
            "gradient_mass": prompt_sums.estimate(
                ("gradient", "size"), quotient, n=tokens, missing=absent or reason
            ),
            "max_weight_share": float(largest.max()) / total if total > 0 else 0.0,
            "empty_tokens": int(self.sums.empty[here].sum()),
            "empty_sequences": int((self.sums.largest[here] <= EMPTY).sum()),
        }

    def _kept(self, sums: PromptSums, times: int, tokens: int, missing: str) -> Estimate:
        """Share of tokens kept; what is dropped is a rate, whose interval holds where it is rare or never seen."""
        if self.resamples == 0 or tokens == 0:
            return sums.estimate(("kept", "tokens"), quotient, n=tokens, missing=missing)
        names = ("kept", "proxy", "proxy_squares", "tokens")
        table = np.stack([sums.columns[name] for name in names], axis=1) / times
        table = table[table[:, 3] > 0]
        dropped = table.copy()
        dropped[:, 0] = table[:, 3] - table[:, 0]
        made = _complement(rate_from_table(dropped), tokens)
        if made.ci_high == 1.0 and made.value != 1.0:
            # Resamples in which all prompts are alike leave that end open; the other rate closes it.
            made = replace(rate_from_table(table), n=tokens)
        return made

    def _balance(self, here: BoolArray, times: int) -> dict[str, Any]:
        prompt_sums = self._prompt_sums(here)
        return {
            "positive_mass": prompt_sums.estimate(
                ("positive_weight", "positive"),
                quotient,
                n=int(self.columns["positive"][here].sum()),
                missing="no advantage above 0",
            ),
            "negative_mass": prompt_sums.estimate(
                ("negative_weight", "negative"),
                quotient,
                n=int(self.columns["negative"][here].sum()),
                missing="no advantage below 0",
            ),
            "mass_ratio": prompt_sums.estimate(
                ("negative_weight", "negative", "positive_weight", "positive"),
                ratio_of_quotients,
                n=int(self.columns["entries"][here].sum()) // times,
                missing="needs advantages of both signs, and weight above 0 where they are positive",
            ),
        }

    def _prompt_sums(self, here: BoolArray) -> PromptSums:
        clusters = self.ground.clusters[here]
        return PromptSums(
            {
                name: np.bincount(clusters, column[here], self.ground.prompts).astype(np.float64)
                for name, column in self.columns.items()
            },
            self.resamples,
            self.seed,
        )


def _complement(rate: Estimate, n: int) -> Estimate:
    """1 - rate, with its interval."""
    value, low, high = (None if end is None else 1.0 - end for end in (rate.value, rate.ci_high, rate.ci_low))
    return Estimate(value, low, high, n, rate.reason)
