"""drift_profile.json: what is written is read back, and nothing else is read."""

from __future__ import annotations

import copy
import json

import pytest

from mismatch_probe.drift import DriftProfile
from mismatch_probe.errors import ConfigError


def test_a_written_profile_is_read_back(planted, tmp_path):
    path = tmp_path / "drift_profile.json"
    planted.profile.write(path)
    again = DriftProfile.read(path)
    assert again == planted.profile
    assert again.to_text() == path.read_text()
    content = json.loads(path.read_text())
    assert content["schema_version"] == 1
    assert content["measured"]["kappa"]["n"] == 192
    assert path.stat().st_size < 200_000


def _drop(content):
    del content["law"]["dependence"]


def _unknown(content):
    content["measured"]["kapa"] = 1.0


def _text(content):
    content["measured"]["kappa"]["value"] = "0.1"


def _falling(content):
    knots = content["law"]["calm"]["cells"][0]["displacements"]
    knots[0], knots[-1] = knots[-1], knots[0]


def _levels(content):
    content["law"]["calm"]["cells"][0]["levels"][-1] = 0.9


def _empty(content):
    content["law"]["calm"]["cells"] = []


def _infinite(content):
    content["law"]["least_logprob"] = float("inf")


def _rate(content):
    content["law"]["flips"]["rates"][0] = 1.5


def _version(content):
    content["schema_version"] = 2


@pytest.mark.parametrize(
    "damage", [_drop, _unknown, _text, _falling, _levels, _empty, _infinite, _rate, _version]
)
def test_damage_is_refused_with_a_hint(planted, tmp_path, damage):
    content = copy.deepcopy(planted.profile.to_json())
    damage(content)
    path = tmp_path / "drift_profile.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        DriftProfile.read(path)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema_version": NaN}', "[" * 100_000, "\x00"])
def test_what_is_no_profile_is_refused(tmp_path, text):
    path = tmp_path / "drift_profile.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        DriftProfile.read(path)
    with pytest.raises(ConfigError):
        DriftProfile.read(tmp_path / "missing.json")
