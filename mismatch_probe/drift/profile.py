"""The drift profile: what was measured of a pair of engines, in a small file that can make the same drift again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.drift.injection import DriftLaw, Injected, inject_padded, inject_sequences
from mismatch_probe.drift.reading import DriftReading
from mismatch_probe.drift.returns import ReturnInterval
from mismatch_probe.errors import ConfigError
from mismatch_probe.simulate.extrapolate import StalenessModel

if TYPE_CHECKING:
    from mismatch_probe.export import ExportedConfig
    from mismatch_probe.trace.run_directory import RunDirectory

SCHEMA_VERSION = 1
EXPORT_NAME = "drift-profile"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a profile was measured. No paths, options or command lines: a profile is made to be handed on.

    Attributes:
        run_id: Of the run.
        created_at: When the run was made, ISO 8601.
        tool_version: Of this tool, when it measured.
        model: Name of the rollout side's model, without a folder.
        rollout: Rollout engine with version and dtype.
        train: Training side with version and dtype.
        temperature: Of sampling, or None where not known.
        top_p: Of sampling, or None.
        top_k: Of sampling, or None.
        num_prompts: Prompts measured.
        prompts_sha256: Hash of the prompts, or None.
        responses_sha256: Hash of the response ids, or None.
    """

    run_id: str
    created_at: str
    tool_version: str
    model: str
    rollout: str
    train: str
    temperature: float | None
    top_p: float | None
    top_k: int | None
    num_prompts: int
    prompts_sha256: str | None
    responses_sha256: str | None


@dataclass(frozen=True, slots=True)
class DriftProfile:
    """Drift as measured on one run, and its law.

    Attributes:
        provenance: Where it was measured.
        measured: Kappa, length law, tail and flip rate with their intervals.
        returns: Where each number comes back to in 95 % of injections into the run's own tokens.
        law: What `inject` draws from.
        staleness: How far optimiser steps move the policy, or None.
        staleness_reason: Why there is none, or None.
        schema_version: Of the file.
    """

    provenance: Provenance
    measured: DriftReading
    returns: dict[str, ReturnInterval]
    law: DriftLaw
    staleness: StalenessModel | None
    staleness_reason: str | None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ConfigError(
                f"the drift profile has schema version {self.schema_version}, this version reads {SCHEMA_VERSION}",
                hint="export the profile again from its run",
            )

    @classmethod
    def from_run(cls, run: RunDirectory | Path | str, *, force: bool = False) -> DriftProfile:
        """Measures the profile of a run that `measure` or `audit` has finished.

        Args:
            run: The run directory.
            force: Whether to measure a run that failed validity or was inconclusive.

        Raises:
            ConfigError: The run failed validity, so that its drift is a fault and not noise.
            InconclusiveError: The run's verdict is inconclusive, there are no tokens, or ids do not line up.
            RunDirectoryError: The run is damaged or was not measured.
        """
        from mismatch_probe.drift.from_run import profile_of_run

        return profile_of_run(run, force=force)

    @classmethod
    def read(cls, path: Path | str) -> DriftProfile:
        """Reads drift_profile.json.

        Raises:
            ConfigError: The file is missing, no JSON, or anything in it is missing, unknown or out of range.
        """
        from mismatch_probe.drift.document import read_profile

        return read_profile(Path(path))

    @classmethod
    def from_json(cls, content: Any) -> DriftProfile:
        """The profile of what `to_json` returned; raises as `read` does."""
        from mismatch_probe.drift.document import profile_from_json

        return profile_from_json(content)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, numbers to 8 digits."""
        from mismatch_probe.drift.document import profile_to_json

        return profile_to_json(self)

    def to_text(self) -> str:
        """The content of drift_profile.json."""
        from mismatch_probe.drift.document import profile_text

        return profile_text(self)

    def write(self, path: Path | str) -> None:
        """Writes drift_profile.json atomically."""
        from mismatch_probe.trace.parts import write_text

        write_text(Path(path), self.to_text())

    def returned(self, again: DriftReading) -> dict[str, bool]:
        """Whether each number of a second measurement lies where injections come back to.

        Args:
            again: `read_drift` of what was injected into tokens like the run's own.
        """
        estimates = again.estimates()
        return {name: interval.holds(estimates[name]) for name, interval in self.returns.items()}

    def inject(
        self,
        rollout_logprobs: npt.ArrayLike,
        sequence_offsets: npt.ArrayLike | None = None,
        *,
        mask: npt.ArrayLike | None = None,
        prompt_ids: npt.ArrayLike | None = None,
        seed: int = 0,
    ) -> Injected:
        """Makes training-side log-probabilities that drift from the given ones as was measured.

        Tokens are displaced in log-odds, so that a log-probability never passes 0 and nothing is clipped. Each
        token's displacement has the law measured for tokens as likely as it; tokens of a prompt, a sequence and a
        neighbourhood depend on each other as measured.

        Args:
            rollout_logprobs: Log mu, nats: flat [tokens] with `sequence_offsets`, or padded [sequences, tokens] with
                `mask`. Anything numpy reads.
            sequence_offsets: int [sequences + 1]; sequence i holds tokens offsets[i]:offsets[i + 1].
            mask: bool [sequences, tokens]; which entries are response tokens.
            prompt_ids: int [sequences]; sequences of one prompt share a number. By default each has its own.
            seed: The same seed and arguments give the same numbers.

        Returns:
            Arrays of the shape given; outside the mask log-probabilities are as given and log-ratios 0.

        Raises:
            ConfigError: The arrays do not fit together, or a log-probability is above 0.
            InconclusiveError: There are no tokens, or one is not finite.
        """
        if (mask is None) == (sequence_offsets is None):
            raise ConfigError("inject needs either sequence_offsets (flat tokens) or mask (padded rows)")
        if mask is not None:
            return inject_padded(self.law, rollout_logprobs, np.asarray(mask), prompt_ids, seed=seed)
        assert sequence_offsets is not None  # noqa: S101 - one of both, checked above
        return inject_sequences(self.law, rollout_logprobs, sequence_offsets, prompt_ids, seed=seed)


def export_profile(run: RunDirectory, *, force: bool = False) -> ExportedConfig:
    """The profile as `export --to drift-profile` writes it; raises as `DriftProfile.from_run` does."""
    from mismatch_probe.export import ExportedConfig

    profile = DriftProfile.from_run(run, force=force)
    notes = tuple(
        f"{name} is not in the profile: {estimate.reason}"
        for name, estimate in profile.measured.estimates().items()
        if estimate.value is None and name in ("kappa", "gaussian_ratio", "k_hat")
    )
    return ExportedConfig(profile.to_text(), "json", notes)
