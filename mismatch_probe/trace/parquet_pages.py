"""Whether a parquet file of unknown origin says the truth about its sizes, found out before Arrow believes it.

Arrow makes room for what a page's header claims, up to 2 GiB a page, before it looks at the page. So the headers are read
here first, and what they and the columns claim together is held against the size of the file.

Source of the layout: the parquet format's parquet.thrift (PageHeader) and Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_FREE = 64 << 20
_RATIO = 1000
"""A file may be said to unpack to 64 Mi bytes and values, and to so many more for each of its bytes; gzip ends at 1032."""
_HEADER = 4096
_LONGEST_HEADER = 16 << 20
_DEPTH = 16


class PageClaimError(ValueError):
    """A file's sizes contradict each other or are beyond belief."""


@dataclass(frozen=True, slots=True)
class _Page:
    stored: int
    size: int
    values: int


def open_parquet(path: Path) -> pq.ParquetFile:
    """Opens a parquet file after a look at its pages; to be closed by the caller.

    Raises:
        PageClaimError: As `check_pages`.
        pyarrow.ArrowException: It is no parquet file. Arrow raises OSError, ValueError and NotImplementedError as well.
    """
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path)
    try:
        with path.open("rb") as file:
            check_pages(file, table.metadata)
    except BaseException:
        table.close()
        raise
    return table


def check_pages(file: BinaryIO, metadata: pq.FileMetaData) -> None:
    """Reads every page header of a parquet file.

    Args:
        file: The file, to be read anywhere.
        metadata: What its footer says.

    Raises:
        PageClaimError: Columns or pages claim more than can be.
    """
    length = file.seek(0, 2)
    most = _FREE + _RATIO * length
    claimed, held = _Sum(most, length), _Sum(most, length)
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            where = f"column {column.path_in_schema!r} of row group {group + 1}"
            claimed.add(column.total_uncompressed_size, column.num_values, where)
            for page in _pages(file, column, length, where):
                held.add(page.size, page.values, where)


class _Sum:
    """What a file has claimed so far."""

    def __init__(self, most: int, length: int) -> None:
        self._most, self._length = most, length
        self._size = self._values = 0

    def add(self, size: int, values: int, where: str) -> None:
        """Adds a claim, if the sum can be true."""
        self._size += size
        self._values += values
        if min(size, values) < 0 or max(self._size, self._values) > self._most:
            raise PageClaimError(
                f"up to {where} it claims {self._size:,} bytes, {self._values:,} values; the file has {self._length:,} bytes"
            )


def _pages(file: BinaryIO, column: pq.ColumnChunkMetaData, length: int, where: str) -> Iterator[_Page]:
    at = column.data_page_offset
    dictionary = column.dictionary_page_offset
    if dictionary is not None and 0 < dictionary < at:
        at = dictionary
    end = at + column.total_compressed_size
    if not 0 <= at <= end <= length:
        raise PageClaimError(f"{where} lies beyond the end of the file")
    while at < end:
        page, used = _header(file, at, end, where)
        at += used + page.stored
        if at > end:
            raise PageClaimError(f"{where} has a page that is longer than the column")
        yield page


def _header(file: BinaryIO, at: int, end: int, where: str) -> tuple[_Page, int]:
    """A page's header and how many bytes it takes; statistics may make it long."""
    room = _HEADER
    while True:
        file.seek(at)
        data = file.read(min(room, end - at))
        try:
            fields, used = _struct(data, 0, 0)
        except IndexError:
            room *= 8
            if len(data) == end - at or room > _LONGEST_HEADER:
                raise PageClaimError(f"{where} has a page header without an end") from None
            continue
        size, stored = fields.get(2), fields.get(3)
        # Values of data pages alone: a dictionary's are not the column's.
        counts = [part.get(1) for part in (fields.get(5), fields.get(8)) if isinstance(part, dict)]
        told = [value for value in (size, stored, *counts) if isinstance(value, int) and value >= 0]
        if len(told) < 2 + len(counts):
            raise PageClaimError(f"{where} has a page header that is none")
        return _Page(size=told[0], stored=told[1], values=sum(told[2:])), used


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Whole numbers and structs of a struct by field id, and where it ends."""
    if depth > _DEPTH:
        raise PageClaimError("a page header is nested too deep")
    found: dict[int, Any] = {}
    field = 0
    while True:
        head = data[at]
        at += 1
        if head == 0:
            return found, at
        delta, kind = head >> 4, head & 15
        if delta:
            field += delta
        else:
            field, at = _number(data, at)
        if kind in (1, 2):
            continue
        value, at = _value(data, at, kind, depth)
        if value is not None:
            found[field] = value


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (4, 5, 6):
        return _number(data, at)
    if kind == 12:
        return _struct(data, at, depth + 1)
    if kind in (1, 2, 3):
        return None, _within(data, at + 1)
    if kind == 7:
        return None, _within(data, at + 8)
    if kind == 8:
        size, at = _varint(data, at)
        return None, _within(data, at + size)
    if kind in (9, 10):
        head = data[at]
        size, at = (head >> 4, at + 1) if head >> 4 != 15 else _varint(data, at + 1)
        for _ in range(size):
            _, at = _value(data, at, head & 15, depth + 1)
        return None, at
    raise PageClaimError("a page header has a type that Thrift does not have")


def _within(data: bytes, at: int) -> int:
    if at > len(data):
        raise IndexError
    return at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise PageClaimError("a page header has a number that is too long")


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A whole number in zigzag order."""
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at
