"""Shards: several processes do parts of one stage into one run directory, with nothing but its file system between them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mismatch_probe.errors import ConfigError, RunDirectoryError
from mismatch_probe.trace.run_directory import RunDirectory

Stage = Literal["record", "score"]
_NOT_THE_RUN = {"out", "ray"}
_COMPARED = ("engine", "scorer", "version", "dtype", "device", "attention", "options")
_NAMED = 8


@dataclass(frozen=True, slots=True)
class Shard:
    """Shard `index` of `count`: the parts p with p mod count = index - 1.

    Attributes:
        index: From 1.
        count: How many there are; 1 is the whole run.
    """

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads "2/4".

        Raises:
            ConfigError: It is not I/N with 1 <= I <= N.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if found is None:
            raise ConfigError(f"--shard {text} is not I/N", hint="write it as --shard 1/4, the first of four")
        index, count = int(found[1]), int(found[2])
        if not 1 <= index <= count:
            raise ConfigError(
                f"--shard {text}: there is no shard {index} of {count}",
                hint=f"shards go from 1/{count} to {count}/{count}",
            )
        return cls(index, count)

    @classmethod
    def of_part(cls, part: int, count: int) -> Shard:
        """The shard that does a part."""
        return cls(part % count + 1, count)

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole run."""
        return self.count == 1

    def holds(self, part: int) -> bool:
        """Whether it does a part."""
        return part % self.count == self.index - 1

    def log_name(self, name: str) -> str:
        """Name of its log: each shard has one of its own."""
        return name if self.is_whole else f"{name}-shard-{self.index}"

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def join_shards(
    held: Mapping[str, Any], fresh: Mapping[str, Any], stage: Stage, shard: Shard
) -> dict[str, Any]:
    """What the manifest says once a shard has begun.

    Args:
        held: The manifest that another shard has written.
        fresh: The manifest that this shard would write.
        stage: What the shard does.
        shard: Which one it is.

    Returns:
        `held`, with the number of shards of the stage.

    Raises:
        RunDirectoryError: The other shard was told other things, or to count otherwise.
    """
    asked, theirs = ({k: v for k, v in m["config"].items() if k not in _NOT_THE_RUN} for m in (fresh, held))
    different = sorted(key for key in asked.keys() | theirs.keys() if asked.get(key) != theirs.get(key))
    for what, section, key in (
        ("model weights", "model", "weights_sha256"),
        ("prompts", "prompts", "sha256"),
    ):
        if held[section][key] != fresh[section][key]:
            different.append(f"the {what}")
    if different:
        raise RunDirectoryError(
            f"shard {shard} is of another run than the shards before it: {', '.join(different)} differ",
            hint="give every shard the same options, or another --out",
        )
    return {**held, "shards": count_shards(held, stage, shard)}


def count_shards(held: Mapping[str, Any], stage: Stage, shard: Shard) -> dict[str, int]:
    """How many shards each stage of a run has, with this one's.

    Raises:
        RunDirectoryError: The stage was begun with another number.
    """
    counts = dict(held.get("shards", {}))
    count = counts.setdefault(stage, shard.count)
    if count != shard.count:
        raise RunDirectoryError(
            f"{stage} was begun in {count} shards, not in {shard.count}",
            hint=f"write --shard {min(shard.index, count)}/{count}",
        )
    return counts


def differing_facts(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """In what the engines of two workers are not the same, by name of the fact."""
    return [name for name in _COMPARED if one.get(name) != other.get(name)]


def missing_parts(run: RunDirectory, legs: Sequence[str], num_parts: int) -> list[int]:
    """Parts that not all of these legs have; `rollout/refit` counts as of part 0."""
    return sorted(
        {
            part
            for leg in legs
            for part, path in enumerate(run.leg_files(leg, num_parts))
            if not path.is_file()
        }
    )


def check_shards(run: RunDirectory, manifest: Mapping[str, Any]) -> None:
    """Whether every shard of a run has done its parts; a run that was not sharded passes.

    Raises:
        RunDirectoryError: Parts are missing; the message names them and the hint the shards.
    """
    for stage, count in manifest.get("shards", {}).items():
        side = "rollout/" if stage == "record" else "train/"
        legs = [leg for leg in manifest["legs"] if leg.startswith(side)]
        missing = missing_parts(run, legs, int(manifest["num_parts"]))
        if not missing:
            continue
        shards = sorted({Shard.of_part(part, count).index for part in missing})
        raise RunDirectoryError(
            f"{stage} is not complete: {name_parts(missing)} of {manifest['num_parts']} missing, "
            f"of shard {', '.join(f'{index}/{count}' for index in shards[:_NAMED])}",
            hint=f"wait for them, or run {stage} --shard {shards[0]}/{count} again: what is there is not done again",
        )


def name_parts(parts: Sequence[int]) -> str:
    """Parts by number, the first few of many."""
    names = ", ".join(map(str, parts[:_NAMED]))
    rest = f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
    return f"part{'s' if len(parts) > 1 else ''} {names}{rest}"
