import pytest

from mismatch_probe.config.bars import default_bars_text, load_bars
from mismatch_probe.config.load import known_keys, load_config, parse_assignment, read_bars
from mismatch_probe.errors import ConfigError


def test_later_sources_win(tmp_path):
    file = tmp_path / "probe.toml"
    file.write_text('model = "a"\n[sampling]\ntemperature = 0.5\nseed = 7\n')
    config = load_config(
        file, ["sampling.temperature=0.9"], {"sampling.temperature": 0.7, "model": None}, {"layers": 3}
    )
    assert (config.model, config.sampling.temperature, config.sampling.seed, config.layers) == (
        "a",
        0.9,
        7,
        3,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1", ("a.b", 1)),
        ("a=0.5", ("a", 0.5)),
        ("a=true", ("a", True)),
        ("a=some/path-x", ("a", "some/path-x")),
        ('a=["x","y"]', ("a", ["x", "y"])),
        ("a=b=c", ("a", "b=c")),
        ("a=1\nb=2", ("a", "1\nb=2")),
    ],
)
def test_assignments(text, expected):
    # The last case must not smuggle in a second key.
    key, value = parse_assignment(text)
    assert key == expected[0]
    assert value == expected[1] or "\n" in text


@pytest.mark.parametrize("text", ["novalue", "=3", "  =x"])
def test_an_assignment_without_key_or_value_is_refused(text):
    with pytest.raises(ConfigError, match="key=value"):
        load_config(None, [text])


@pytest.mark.parametrize(
    ("assignment", "nearest"),
    [
        ("samplin.temperature=1", "sampling"),
        ("sampling.temprature=1", "sampling.temperature"),
        ("mdel=x", "model"),
    ],
)
def test_an_unknown_key_names_the_nearest(assignment, nearest):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [assignment])
    assert "unknown key" in caught.value.message
    assert nearest in (caught.value.hint or "")


@pytest.mark.parametrize(
    "assignment",
    ["sampling.temperature=0", "sampling.temperature=-1", "sampling.top_p=1.5", "sampling.samples=0", 'legs=["train/forward"]',
     'rollout.dtype="int3"', 'legs=["rollout/decode","nope/leg"]', "prompts.num_prompts=0"],
)  # fmt: skip
def test_bad_values_are_refused_by_key(assignment):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [assignment])
    assert assignment.split("=")[0].split(".")[-1] in caught.value.message


def test_engine_options_are_free_form():
    config = load_config(None, ["rollout.options.max_num_seqs=4", 'train.options.attention="eager"'])
    assert config.rollout.options == {"max_num_seqs": 4}
    assert config.train.options == {"attention": "eager"}


@pytest.mark.parametrize("content", ["model = ", "[[[", "model = 'a'\nmodel = 'b'"])
def test_broken_toml_is_a_clear_error(tmp_path, content):
    file = tmp_path / "x.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match="TOML"):
        load_config(file)


def test_a_missing_file_and_a_folder_are_clear_errors(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "no.toml")
    with pytest.raises(ConfigError, match="folder"):
        load_config(tmp_path)


def test_replay_without_routing_contradicts_itself():
    with pytest.raises(ConfigError, match="routing"):
        load_config(None, ["routing=false", 'legs=["rollout/decode","train/replay"]'])


def test_known_keys_are_dotted():
    assert {"model", "sampling.temperature", "rollout.options"} <= set(known_keys())


def test_every_bar_is_explained_in_the_file():
    lines = default_bars_text().splitlines()
    for index, line in enumerate(lines):
        if "=" in line and not line.startswith("#"):
            above = lines[index - 1]
            assert above.startswith("#") or "=" in above, line


def test_bars_can_be_changed_and_unknown_ones_are_refused():
    assert load_bars({"min_tokens": 7}).min_tokens == 7
    with pytest.raises(ConfigError) as caught:
        load_bars({"min_token": 7})
    assert "min_tokens" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="sequence_ess"):
        load_bars({"sequence_ess": 2.0})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), True, 10**400])
def test_a_bar_is_a_finite_number(value):
    with pytest.raises(ConfigError, match=r"bars\.k3_max"):
        load_bars({"k3_max": value})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no bar"),
        ("[bars]\n", "names no bar"),
        ("bars = 3\n", "no table"),
        ("[[bars]]\nk3_max = 1\n", "no table"),
        ("k3_max = 1\n[bars]\nsequence_ess = 0.5\n", "k3_max stands above"),
        ("k3_max = " + "9" * 5000, "not valid TOML"),
        ("k3_max = " + "[" * 5000, "not valid TOML"),
    ],
)
def test_a_file_of_bars_that_would_not_be_held_is_refused(tmp_path, text, said):
    path = tmp_path / "bars.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_bars(path)


def test_a_file_of_bars_may_be_a_config_file_or_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "bars.toml"
    path.write_text("[bars]\nk3_max = 0.5\n[rollout]\nengine = 'vllm'\n")
    assert read_bars(path) == {"k3_max": 0.5}
    path.write_text("k3_max = 0.5\n", encoding="utf-8-sig")
    assert read_bars(path) == {"k3_max": 0.5}


def test_a_value_of_thousands_of_digits_stays_text():
    digits = "9" * 5000
    assert parse_assignment(f"bars.k3_max={digits}") == ("bars.k3_max", digits)
