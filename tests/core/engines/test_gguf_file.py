"""Headers of GGUF files, whole and broken, and where they part from the checkpoint."""

import pytest
from gguf_model import write_gguf

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.engines.gguf_file import gguf_differences, read_gguf
from mismatch_probe.errors import ConfigError


@pytest.fixture(scope="module")
def checkpoint():
    return resolve_model("tiny-qwen3-moe").path


@pytest.fixture(scope="module")
def gguf(checkpoint, tmp_path_factory):
    return write_gguf(checkpoint, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_the_header_says_what_the_model_is(gguf):
    facts = read_gguf(gguf)
    assert (facts.architecture, facts.vocab_size, facts.main_type) == ("qwen3moe", 64, "F32")
    assert facts.numbers["block_count"] == 4 and facts.numbers["expert_used_count"] == 4


def test_a_faithful_copy_differs_in_nothing(gguf, checkpoint):
    assert gguf_differences(gguf, checkpoint) == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"rope_theta": 500000.0}, "gguf rope.freq_base"),
        ({"rms_norm_eps": 1e-5}, "gguf attention.layer_norm_rms_epsilon"),
        ({"num_experts_per_tok": 2}, "gguf expert_used_count"),
    ],
)
def test_another_constant_is_named(checkpoint, tmp_path, change, key):
    path = write_gguf(checkpoint, tmp_path / "other.gguf", **change)
    assert [item[0] for item in gguf_differences(path, checkpoint)] == [key]


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model" * 100, b"GGUF" + b"\xff" * 4096])
def test_what_is_no_gguf_file_is_refused(tmp_path, content):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.gguf"):
        read_gguf(path)


def test_a_file_cut_short_is_refused(gguf, tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(gguf.read_bytes()[: gguf.stat().st_size // 2])
    with pytest.raises(ConfigError, match=r"cut\.gguf"):
        read_gguf(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        read_gguf(tmp_path / "none.gguf")
