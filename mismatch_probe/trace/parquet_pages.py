"""Whether a parquet file of unknown origin says the truth about its sizes, found out before Arrow believes it.

Arrow makes room for what a page's header claims, up to 2 GiB a page, before it looks at the page. So the headers are read
here first, and what they and the columns claim together is held against the size of the file. The footer is read here too:
pyarrow's own view of a column's metadata ends the process where the metadata contradict themselves.

Source of the layout: the parquet format's parquet.thrift (FileMetaData, PageHeader) and Thrift's compact protocol.
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
class _Column:
    values: int
    size: int
    stored: int
    begin: int


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

    with path.open("rb") as file:
        check_pages(file)
    return pq.ParquetFile(path)


def check_pages(file: BinaryIO) -> None:
    """Reads the footer and every page header of a parquet file.

    Args:
        file: The file, to be read anywhere.

    Raises:
        PageClaimError: It is no parquet file, or columns or pages claim more than can be.
    """
    length = file.seek(0, 2)
    most = _FREE + _RATIO * length
    claimed, held = _Sum(most, length), _Sum(most, length)
    for number, column in enumerate(_columns(file, length), start=1):
        where = f"column chunk {number}"
        claimed.add(column.size, column.values, where)
        # Arrow reads no page of a column without values; that of an empty table has a dictionary and no place for data.
        for page in _pages(file, column, length, where) if column.values else ():
            held.add(page.size, page.values, where)


def _columns(file: BinaryIO, length: int) -> Iterator[_Column]:
    """Of every row group."""
    if length < 12:
        raise PageClaimError("it is no parquet file: it is too short")
    file.seek(length - 8)
    tail = file.read(8)
    size = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or size > length - 12:
        raise PageClaimError("it is no parquet file: it has no footer")
    file.seek(length - 8 - size)
    try:
        footer, _ = _struct(file.read(size), 0, 0)
    except IndexError:
        raise PageClaimError("its footer has no end") from None
    for group in _structs(footer.get(4)):
        for chunk in _structs(group.get(1)):
            told = chunk.get(3)
            numbers = [told.get(field) for field in (5, 6, 7, 9)] if isinstance(told, dict) else [None]
            sure = [value for value in numbers if isinstance(value, int)]
            if len(sure) < 4:
                raise PageClaimError("its footer does not say where a column is")
            dictionary = told.get(11) if isinstance(told, dict) else None
            # As Arrow has it: a dictionary comes first, where there is one.
            begin = dictionary if isinstance(dictionary, int) and 0 < dictionary < sure[3] else sure[3]
            yield _Column(values=sure[0], size=sure[1], stored=sure[2], begin=begin)


def _structs(value: Any) -> list[dict[int, Any]]:
    found = value if isinstance(value, list) else []
    if not all(isinstance(item, dict) for item in found):
        raise PageClaimError("its footer is none")
    return found


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


def _pages(file: BinaryIO, column: _Column, length: int, where: str) -> Iterator[_Page]:
    at, end = column.begin, column.begin + column.stored
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
    """Whole numbers, structs and lists of a struct by field id, and where it ends."""
    if depth > _DEPTH:
        raise PageClaimError("a header is nested too deep")
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
        if depth > _DEPTH:
            raise PageClaimError("a header is nested too deep")
        head = data[at]
        size, at = (head >> 4, at + 1) if head >> 4 != 15 else _varint(data, at + 1)
        items = []
        for _ in range(size):
            item, at = _value(data, at, head & 15, depth + 1)
            items.append(item)
        return items, at
    raise PageClaimError("a header has a type that Thrift does not have")


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
            raise PageClaimError("a header has a number that is too long")


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A whole number in zigzag order."""
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at
