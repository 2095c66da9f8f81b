import pytest

from mismatch_probe.errors import ConfigError
from mismatch_probe.registry import Registry


def made(*names):
    registry: Registry[str] = Registry("engine", "mismatch_probe.no_such_group", lambda: None)
    for name in names:
        registry.add(name, name.upper(), f"about {name}")
    return registry


def test_own_implementations_are_loaded_once_and_late():
    calls = []
    registry: Registry[int] = Registry("x", "mismatch_probe.no_such_group", lambda: calls.append(1))
    registry.add("a", 1, "")
    assert not calls
    registry.get("a")
    list(registry)
    assert calls == [1]


def test_an_unknown_name_hints_at_the_nearest_or_lists_all():
    with pytest.raises(ConfigError) as caught:
        made("vllm", "sglang").get("vlm")
    assert "vllm" in (caught.value.hint or "")
    with pytest.raises(ConfigError) as caught:
        made("vllm", "sglang").get("zzz")
    assert "sglang, vllm" in (caught.value.hint or "")


def test_a_name_cannot_be_taken_twice():
    registry = made("a")
    registry.add("a", registry.get("a").item, "again")
    with pytest.raises(ValueError, match="twice"):
        registry.add("a", "B", "another")


def test_entries_are_sorted():
    assert [entry.name for entry in made("b", "a")] == ["a", "b"]
