"""Hostile and broken dumps: nothing in them runs, nothing outside is touched, and the error says what is wrong."""

import contextlib
import io
import json
import os
import pickle
import resource
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mismatch_probe.config.model import ProbeConfig
from mismatch_probe.errors import ConfigError, InconclusiveError, MismatchProbeError
from mismatch_probe.imports.allowed import allowed_name, check_state
from mismatch_probe.imports.importer import Notes, importers
from mismatch_probe.imports.unpickling import load_torch_bytes, read_pickle, read_torch
from mismatch_probe.stages.importing import import_dump
from mismatch_probe.stages.measure import measure_run
from mismatch_probe.trace.run_directory import RunDirectory


class Payload:
    """Pickles as a call of os.system."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def read(name: str, path: Path) -> list[Any]:
    return list(importers.get(name).item(path, Notes()))


@pytest.fixture
def copies(golden: tuple[Path, list[Any]], tmp_path: Path) -> Iterator[Path]:
    """Golden dumps that a test may spoil."""
    yield shutil.copytree(golden[0], tmp_path / "dumps")


def replace_in_zip(path: Path, **entries: bytes) -> None:
    """Writes a torch archive again with other contents of some entries, by last name."""
    with zipfile.ZipFile(path) as archive:
        held = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in held.items():
            archive.writestr(name, entries.get(name.rsplit("/", 1)[-1].replace(".", "_"), data))


PICKLED = {
    "verl": "verl/exp_proj/GBS4_N2_in8_out16/1/gen_batch.dp",
    "roll": "roll/train/step_000001.pkl",
    "skyrl": "skyrl/dumped_data/global_step_2_training_input.pkl",
}
TORCH = {
    "slime": "slime/rollout_data/0.pt",
    "miles": "miles/train_data/0_1.pt",
    "verl-queue": "verl-queue/exp_proj/GBS4_N2_in8_out16/1/0/tq_batch.pt",
}
IMPORTERS = {name: name.removesuffix("-queue") for name in (*PICKLED, *TORCH)}


@pytest.mark.parametrize("name", PICKLED)
def test_pickle_that_calls(name: str, copies: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (copies / PICKLED[name]).write_bytes(pickle.dumps({"batch_dict": Payload(marker)}))
    with pytest.raises(ConfigError, match=r"refused.*system") as caught:
        read(IMPORTERS[name], copies / name)
    assert "nothing in it was run" in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("name", TORCH)
def test_torch_file_that_calls(name: str, copies: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    replace_in_zip(copies / TORCH[name], data_pkl=pickle.dumps({"samples": [Payload(marker)]}, protocol=2))
    with pytest.raises(ConfigError, match="system"):
        read(IMPORTERS[name], copies / name)
    assert not marker.exists()


def test_payload_inside_an_allowed_container(tmp_path: Path, copies: Path) -> None:
    """The tensors of a DataProto are torch.save bytes inside the pickle: the inner reader is restricted as well."""
    marker = tmp_path / "ran"
    inner = io.BytesIO()
    torch.save({"input_ids": Payload(marker)}, inner)
    with pytest.raises(ConfigError, match="system"):
        load_torch_bytes(inner.getvalue(), "inner")
    state = {"batch_dict": {"sequences": {"format": "torch", "data": inner.getvalue()}}, "metadata": {}}
    (copies / PICKLED["skyrl"]).write_bytes(pickle.dumps(state))
    with pytest.raises(ConfigError, match="system"):
        read("skyrl", copies / "skyrl")
    assert not marker.exists()


@pytest.mark.parametrize(
    "text", [b"cbuiltins\neval\n(S'1'\ntR.", b"cbuiltins\ngetattr\n.", b"cnumpy\nload\n.", b"ctorch\nload\n.", b"ctorch._utils\nos\n."]
)  # fmt: skip
def test_names_outside_the_list(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match="it asks for"):
        read_pickle(path)


@pytest.mark.parametrize("name", [*PICKLED, *TORCH])
def test_truncated(name: str, copies: Path) -> None:
    path = copies / {**PICKLED, **TORCH}[name]
    data = path.read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ConfigError):
            read(IMPORTERS[name], copies / name)


@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_an_error_or_plain_data(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.pkl"
    path.write_bytes(data)
    try:
        read_pickle(path)
    except MismatchProbeError:
        return


def test_lengths_that_a_pickle_only_declares(tmp_path: Path) -> None:
    """Strings, bytes and arrays of a terabyte in a file of a few bytes."""
    huge = (1 << 40).to_bytes(8, "little")
    array = b"cnumpy\nndarray\n(I1099511627776\ntR."
    for text in (b"\x80\x04\x8d" + huge, b"\x80\x04\x8e" + huge, b"\x80\x04\x95" + huge, b"\x80\x05\x96" + huge, array,
                 b"cbuiltins\nbytearray\n(I1099511627776\ntR."):  # fmt: skip
        path = tmp_path / "file.pkl"
        path.write_bytes(text)
        with pytest.raises(ConfigError, match=r"damaged|refused"):
            read_pickle(path)


@pytest.mark.parametrize("kept", ["weights only", "with a name torch does not know"])
def test_a_tensor_larger_than_its_storage(kept: str, copies: Path, golden_module: Any) -> None:
    """Strides of 0 make one stored value a terabyte; it is refused before it is made into an array."""
    path = copies / TORCH["slime"]
    samples = torch.load(path, weights_only=False)["samples"]
    samples[0]["rollout_routed_experts"] = torch.zeros(1, dtype=torch.int32).expand(1 << 38, 1, 1)
    if kept != "weights only":
        from tensordict import TensorDict

        samples[0]["metadata"] = TensorDict({}, batch_size=[])
    torch.save({"rollout_id": 0, "samples": samples}, path)
    with pytest.raises(ConfigError, match="its storage has"):
        read("slime", path)


@pytest.mark.parametrize("column", ["metadata", "tokens", "group_index"])
def test_lists_that_unfold(column: str, copies: Path, tmp_path: Path) -> None:
    """Nine lists, each ten times the one before: a few bytes that would be a billion values."""
    path = copies / TORCH["slime"]
    payload = torch.load(path, weights_only=False)
    value: Any = [1] * 10
    for _ in range(8):
        value = [value] * 10
    payload["samples"][0][column] = value
    torch.save(payload, path)
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"refused|expected text"), run.claim():
        import_dump(run, "slime", path, ProbeConfig(out=run.path), "test")


def test_nested_rows_that_do_not_fit(copies: Path) -> None:
    path = copies / TORCH["verl-queue"]
    payload = torch.load(path, weights_only=False)
    payload["keys"].append("one too many")
    torch.save(payload, path)
    with pytest.raises(ConfigError, match="8 rows for 9 keys"):
        read("verl", path)
    del payload["keys"][-1], payload["tensordict"]["response_mask"]
    torch.save(payload, path)
    with pytest.raises(InconclusiveError, match="has no response_mask"):
        read("verl", path)
    bounds = {"values": torch.zeros(4), "offsets": torch.tensor([0, 9]), "lengths": None}
    with pytest.raises(pickle.UnpicklingError, match="do not fit its values"):
        allowed_name("torch.nested._internal.nested_tensor", "_rebuild_njt")(bounds)


@pytest.mark.parametrize(
    ("routes", "said"),
    [
        (np.zeros((400, 3, 2), np.int32), "rows for"),
        (np.zeros((3, 2), np.int32), "expected whole numbers"),
        (np.zeros((3, 3, 2), np.float32), "expected whole numbers"),
    ],
)
def test_routes_that_do_not_fit(routes: Any, said: str, copies: Path) -> None:
    path = copies / TORCH["slime"]
    payload = torch.load(path, weights_only=False)
    payload["samples"][2]["rollout_routed_experts"] = routes
    torch.save(payload, path)
    with pytest.raises(ConfigError, match=said):
        read("slime", path)


def test_files_are_read_as_they_are_taken(copies: Path) -> None:
    """Sequences before a broken line, and files before a broken file, are given first: nothing is read ahead."""
    folder = copies / "prime-rl/token_exports/step_3"
    path = folder / "rank_0.jsonl"
    path.write_text(path.read_text() + "no JSON\n")
    (folder / "rank_1.jsonl").write_text("nor this\n")
    found = importers.get("prime-rl").item(folder, Notes())
    assert len([next(found) for _ in range(8)]) == 8
    with pytest.raises(ConfigError, match="line 9 is no JSON"):
        next(found)


def test_rows_without_bounds(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = copies / "nemo-rl/train_data_step6.jsonl"
    deep.write_text("[" * 200_000)
    with pytest.raises(ConfigError, match="line 1 is no JSON"):
        read("nemo-rl", deep)
    monkeypatch.setattr("mismatch_probe.imports.json_lines._LINE_LIMIT", 100)
    with pytest.raises(ConfigError, match="line 1 is longer than"):
        read("nemo-rl", copies / "nemo-rl")
    monkeypatch.setattr("mismatch_probe.trace.parquet_pages._FREE", 100)
    monkeypatch.setattr("mismatch_probe.trace.parquet_pages._RATIO", 0)
    with pytest.raises(ConfigError, match="it claims"):
        read("trl", copies / "trl")


def test_a_length_beyond_the_row(copies: Path) -> None:
    path = copies / "nemo-rl/train_data_step5.jsonl"
    edit_lines(path, input_lengths=lambda _: 4000)
    with pytest.raises(ConfigError, match="input_lengths 4000 does not fit"):
        read("nemo-rl", path)


def test_sentinels_are_named_and_not_averaged(copies: Path, tmp_path: Path) -> None:
    edit_lines(
        copies / "prime-rl/token_exports/step_3/rank_0.jsonl", inference_logprobs=lambda v: [*v[:-1], -9999.0]
    )
    run = RunDirectory(tmp_path / "run")
    with run.claim():
        import_dump(run, "prime-rl", copies / "prime-rl", ProbeConfig(out=run.path), "test")
    result = measure_run(run)
    assert result["data_quality"]["unusable"]["sequences"] == [2] and not result["token"]["available"]


def test_archives(tmp_path: Path) -> None:
    good = io.BytesIO()
    torch.save(torch.zeros(4), good)
    for name, said in (
        ("../outside", "outside itself"),
        ("/etc/x", "outside itself"),
        ("archive/code/x.py", "holds code"),
    ):
        path = tmp_path / "bad.pt"
        path.write_bytes(good.getvalue())
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"x")
        with pytest.raises(ConfigError, match=said):
            read_torch(path)
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(ConfigError, match="compressed"):
        read_torch(bomb)


def edit_lines(path: Path, **changes: Any) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for name, change in changes.items():
        rows[2][name] = change(rows[2][name])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inference_logprobs": lambda v: v[:-1]}, "rank_0.jsonl line 3: inference_logprobs has shape"),
        ({"inference_logprobs": lambda v: [[x] for x in v]}, "shape"),
        ({"token_ids": lambda v: [float(x) + 0.5 for x in v]}, "no list of whole numbers"),
        ({"token_ids": lambda v: [-100, *v[1:]]}, "negative"),
        ({"loss_mask": lambda _: None}, "has no loss_mask"),
        ({"trainer_logprobs": lambda _: ["a"]}, "not a list of numbers"),
    ],
)  # fmt: skip
def test_broken_rows(changes: dict[str, Any], said: str, copies: Path) -> None:
    edit_lines(copies / "prime-rl/token_exports/step_3/rank_0.jsonl", **changes)
    with pytest.raises(MismatchProbeError, match=said):
        read("prime-rl", copies / "prime-rl")


def test_cut_json_and_nan(copies: Path) -> None:
    path = copies / "nemo-rl/train_data_step5.jsonl"
    edit_lines(path, generation_logprobs=lambda v: [None if i == 9 else x for i, x in enumerate(v)])
    # A hole is kept for the measurement to name, not filled.
    assert any(np.isnan(one.rollout_logprobs).any() for one in read("nemo-rl", path))
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ConfigError, match="line 8 is no JSON"):
        read("nemo-rl", path)


def test_missing_rank(copies: Path) -> None:
    (copies / "miles/train_data/0_1.pt").unlink()
    with pytest.raises(ConfigError, match="rank 1 of 2 is missing"):
        read("miles", copies / "miles")


def test_halves_of_different_steps(copies: Path) -> None:
    path = copies / "slime/train_data/0.pt"
    payload = torch.load(path, weights_only=True)
    payload["samples"][0]["tokens"][-1] += 1
    torch.save(payload, path)
    with pytest.raises(InconclusiveError, match="not the rollout's"):
        read("slime", copies / "slime")


def test_text_only_table(copies: Path) -> None:
    import pyarrow.parquet as pq

    path = copies / "trl/completions/completions_00004.parquet"
    pq.write_table(pq.read_table(path).select(["step", "prompt", "completion", "advantage"]), path)
    with pytest.raises(InconclusiveError, match="it is text"):
        read("trl", path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ConfigError, match="damaged"):
        read("trl", path)


def test_links_out_of_the_dump(copies: Path, tmp_path: Path) -> None:
    outside = tmp_path / "rank_1.jsonl"
    outside.write_text("{}\n")
    (copies / "prime-rl/token_exports/step_3/rank_1.jsonl").symlink_to(outside)
    assert len(read("prime-rl", copies / "prime-rl")) == 8


def test_wrong_shapes(copies: Path) -> None:
    path = copies / PICKLED["skyrl"]
    width = np.zeros((2, 4), np.int64)
    columns = {"sequences": width, "attention_mask": width + 1, "response_mask": width[:, :2], "loss_mask": width[:, :2], "rollout_logprobs": np.zeros((2, 9))}  # fmt: skip
    held = {
        name: {"format": "numpy", "data": value.tobytes(), "shape": value.shape, "dtype": str(value.dtype)}
        for name, value in columns.items()
    }
    path.write_bytes(pickle.dumps({"batch_dict": held, "metadata": {}}))
    with pytest.raises(ConfigError, match="rollout_logprobs is float64 of shape"):
        read("skyrl", path)
    held["sequences"]["dtype"] = "O"
    path.write_bytes(pickle.dumps({"batch_dict": held, "metadata": {}}))
    with pytest.raises(ConfigError, match="sequences"):
        read("skyrl", path)


WIDE_MEMO = b"\x80\x02]r\x00\xe1\xf5\x05."
"""A list, noted under the memo index 1e8: Python's unpickler in C makes room for 1.6 GB."""


def _padded(pickled: bytes) -> bytes:
    """The same content, 5 MB longer: a string that is dropped again."""
    return pickled[:2] + b"X" + (5_000_000).to_bytes(4, "little") + b"a" * 5_000_000 + b"0" + pickled[2:]


@pytest.mark.parametrize("form", ["pickle", "long pickle", "torch"])
def test_a_memo_index_takes_no_memory(form: str, tmp_path: Path) -> None:
    path = tmp_path / "wide"
    if form == "torch":
        torch.save([Payload(tmp_path / "ran")], path)  # a name that sends torch's own reader away
        replace_in_zip(path, data_pkl=WIDE_MEMO[:2] + b"cnumpy\ndtype\n0" + WIDE_MEMO[2:])
    else:
        path.write_bytes(WIDE_MEMO if form == "pickle" else _padded(WIDE_MEMO))
    read_it = read_torch if form == "torch" else read_pickle
    with _address_space(1 << 29):
        assert read_it(path) == []


@contextlib.contextmanager
def _address_space(more: int) -> Iterator[None]:
    """Lets this process map so many bytes more than it has now."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def test_a_length_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"\x80\x05\x96" + (1 << 36).to_bytes(8, "little") + b"abc.")
    with _address_space(1 << 29), pytest.raises(ConfigError, match=r"damaged|truncated"):
        read_pickle(path)


@pytest.mark.parametrize("name", [b"cnumpy\ndtype\n", b"ccollections\nOrderedDict\n"])
def test_a_state_for_a_class_or_a_function_is_refused(name: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"\x80\x02" + name + b"}X\x01\x00\x00\x00aK\x01sb.")
    with pytest.raises(ConfigError, match="changes a function or a class"):
        read_pickle(path)


class _Stated:
    """Pickles as a numpy object with a state of its own."""

    def __init__(self, make: Any, arguments: tuple[Any, ...], state: Any) -> None:
        self.made = make, arguments, state

    def __reduce__(self) -> Any:
        return self.made


def _array(dtype: Any, shape: tuple[int, ...], data: Any) -> Any:
    return _Stated(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, data))


@pytest.mark.parametrize(
    "stated",
    [
        # Flags that make eight bytes a pointer to an object.
        _Stated(np.dtype, ("f8", False, True), (3, "<", None, None, None, -1, -1, 63)),
        _Stated(np.dtype, ("f8", False, True), (3, "<", None, None, None, 1 << 40, 8, 0)),
        _Stated(np.dtype, ("f8", False, True), (3, 7, None, None, None, -1, -1, 0)),
        _Stated(np.dtype, ("f8", False, True), 5),
        _array(np.dtype("f8"), (1 << 30,), b"12345678"),
        _array(np.dtype("f8"), (-1,), b"12345678"),
        _array(np.dtype("O"), (1,), b"12345678"),
        _array("f8", (1,), b"12345678"),
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_is_refused(stated: Any, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(pickle.dumps(stated))
    with pytest.raises(ConfigError, match="refused or damaged"):
        read_pickle(path)


def test_a_byte_order_stays_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "order"
    swapped = np.arange(3, dtype=">f8")
    path.write_bytes(pickle.dumps(swapped))
    assert read_pickle(path).tolist() == [0, 1, 2]
    path.write_bytes(pickle.dumps(_Stated(np.dtype, ("f8",), (3, ">", None, None, None, -1, -1, 0))))
    read_pickle(path)
    assert np.dtype("f8").isnative
    assert np.frombuffer(np.ones(1).tobytes(), "f8")[0] == 1
    names = np.array(["a", "bcd"])
    path.write_bytes(pickle.dumps([names, np.array([1, "x"], dtype=object), np.float32(2)]))
    texts, objects, scalar = read_pickle(path)
    assert (texts.tolist(), objects.tolist(), float(scalar)) == (["a", "bcd"], [1, "x"], 2.0)


def test_a_tensor_has_no_state() -> None:
    with pytest.raises(pickle.UnpicklingError, match="tensor"):
        check_state(torch.zeros(1), {"a": 1})
