"""Sizes that a parquet file claims: files as writers write them pass, files that lie are refused before Arrow makes room for it."""

import contextlib
import resource
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe.errors import ConfigError, RunDirectoryError
from mismatch_probe.prompts import prompt_set
from mismatch_probe.trace.parquet_pages import PageClaimError, _header, _struct, open_parquet
from mismatch_probe.trace.parts import read_table

ROWS = 20_000


def table():
    generator = np.random.default_rng(0)
    return pa.table(
        {
            "prompt": [f"{n}+{n}=" for n in range(ROWS)],
            "constant": ["the same words in every row of the table"] * ROWS,
            "ids": [list(range(n % 7)) for n in range(ROWS)],
            "x": generator.normal(size=ROWS),
            "nulls": pa.array([None] * ROWS, pa.int64()),
        }
    )


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_what_arrow_writes_passes(tmp_path, compression, version, dictionary):
    path = tmp_path / "t.parquet"
    pq.write_table(
        table(), path, compression=compression, data_page_version=version, use_dictionary=dictionary,
        row_group_size=3000, data_page_size=4096, write_page_index=True, write_page_checksum=True,
    )  # fmt: skip
    with open_parquet(path) as opened:
        assert opened.read().equals(table())


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_a_table_without_rows_passes(tmp_path, compression, dictionary):
    path, empty = tmp_path / "t.parquet", table().slice(0, 0)
    pq.write_table(empty, path, compression=compression, use_dictionary=dictionary)
    with open_parquet(path) as opened:
        assert opened.read().equals(empty)


def test_a_column_that_compresses_as_far_as_can_be(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": np.zeros(3_000_000)}), path, compression="gzip", use_dictionary=False)
    with open_parquet(path) as opened:
        assert opened.read().num_rows == 3_000_000


def zigzag(value):
    value, out = (value << 1) ^ (value >> 63), b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def lying(path, *, size=None, values=None):
    """One page whose header claims another size or number of values; the footer as it was."""
    pq.write_table(pa.table({"prompt": ["a", "b", "c"]}), path, compression="zstd", use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    data, at = path.read_bytes(), column.data_page_offset
    with path.open("rb") as file:
        page, used = _header(file, at, at + column.total_compressed_size, "here")
    held = data[at : at + used]
    if size is not None:
        held = held.replace(b"\x15" + zigzag(page.size), b"\x15" + zigzag(size), 1)
    if values is not None:
        held = held.replace(b"\x2c\x15" + zigzag(page.values), b"\x2c\x15" + zigzag(values), 1)
    # The header has grown, so the page has as many bytes less.
    grown = len(held) - used
    held = held.replace(b"\x15" + zigzag(page.stored), b"\x15" + zigzag(page.stored - grown), 1)
    assert grown > 0 and len(held) == used + grown
    path.write_bytes(data[:at] + held + data[at + used + grown :])


def test_a_page_that_claims_gigabytes_is_refused_before_there_is_room_for_it(tmp_path):
    path = tmp_path / "t.parquet"
    lying(path, size=2**31 - 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PageClaimError, match="2,147,483,6"):
        open_parquet(path)
    with pytest.raises(ConfigError, match="claims"):
        prompt_set._read(path)
    with pytest.raises(RunDirectoryError, match="claims"):
        read_table(path, pa.schema([("prompt", pa.string())]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_page_that_claims_billions_of_values_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    lying(path, values=2**31 - 1)
    with pytest.raises(PageClaimError, match="2,147,483,6"):
        open_parquet(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x15\x00" * 30, "without an end"),
        (b"\x1c" * 40, "too deep"),
        (b"\x15" + b"\xff" * 12 + b"\x00", "too long"),
        (b"\x1d\x00", "does not have"),
        (b"\x00", "is none"),
        (b"\x25\x01\x15\x01\x00", "is none"),
        (b"\x18\xff\xff\xff\xff\x07", "without an end"),
    ],
)
def test_headers_that_are_none(tmp_path, data, message):
    path = tmp_path / "page"
    path.write_bytes(data)
    with path.open("rb") as file, pytest.raises(PageClaimError, match=message):
        _header(file, 0, len(data), "here")


@pytest.mark.parametrize(
    ("footer", "message"),
    [
        (b"\x19" * 3000, "too deep"),
        (b"\x1c" * 3000, "too deep"),
        (b"\x49\x1c\x19\x1c\x00\x00\x00", "does not say where"),
        (b"\x49\x15\x02\x00", "footer is none"),
        (b"\x49\xfc\xff\xff\xff\xff\x07", "has no end"),
    ],
)
def test_footers_that_are_none(tmp_path, footer, message):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1")
    with pytest.raises(PageClaimError, match=message):
        open_parquet(path)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 4, b"PAR1" + b"\xff" * 12 + b"PAR1", b"x" * 100])
def test_files_that_are_none(tmp_path, data):
    path = tmp_path / "t.parquet"
    path.write_bytes(data)
    with pytest.raises(PageClaimError, match="no parquet file"):
        open_parquet(path)


def test_metadata_that_end_the_process_in_arrows_own_view_of_them(tmp_path):
    """Found by fuzzing: size statistics that contradict the schema. Reading is Arrow's, and it refuses or reads."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"ids": [[1, 2], [3]]}), path)
    data = bytearray(path.read_bytes())
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    generator = np.random.default_rng(0)
    for _ in range(2000):
        changed = bytearray(data)
        for place in generator.integers(begin, len(data) - 8, 3):
            changed[place] = generator.integers(256)
        path.write_bytes(bytes(changed))
        with contextlib.suppress(RunDirectoryError):
            read_table(path, pa.schema([("ids", pa.list_(pa.int64()))]))


@given(st.binary(max_size=200))
def test_any_bytes_end(data):
    try:
        _, used = _struct(data, 0, 0)
    except (IndexError, PageClaimError):
        return
    assert 0 < used <= len(data)


def test_statistics_that_make_a_header_long(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": [b"\xff" * 100_000, b"\x00" * 100_000]}), path, use_dictionary=False)
    with open_parquet(path) as opened:
        assert opened.read().num_rows == 2
