"""Each reader on its corpus, cut off at several places and with bytes changed: this project's errors and nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz.mutate import mutate
from fuzz.targets import DUMPS, TARGETS, seeds

WAS_HERE = Path("/tmp/mismatch-probe-was-here")
MUTATIONS = 40


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_reader_survives_its_corpus(name: str) -> None:
    WAS_HERE.unlink(missing_ok=True)
    corpus = seeds(name)
    assert len(corpus) >= 1, f"{name} has no corpus"
    generator = random.Random(name)
    for data in corpus:
        TARGETS[name](data)
        for share in (0.1, 0.5, 0.9):
            TARGETS[name](data[: int(share * len(data))])
    for _ in range(MUTATIONS):
        TARGETS[name](mutate(generator.choice(corpus), corpus, generator))
    assert not WAS_HERE.exists(), "a file that was read has run something"


def test_every_importer_is_a_target() -> None:
    from mismatch_probe.imports.importer import importers

    assert {entry.name for entry in importers} == {importer for importer, _, _ in DUMPS.values()} | {
        "nemo-rl",
        "prime-rl",
        "trl",
    }


def test_the_corpora_are_small() -> None:
    assert sum(len(data) for name in TARGETS for data in seeds(name)) < 1_000_000
