"""How numbers and strings are written, the same in every view.

Three significant digits, plain notation where it is readable, `1.20e-5` elsewhere; shares as percent that never
round to 0 % or 100 % unless they are. Every string that comes from a result passes through `clean`, so that no
control character or terminal escape reaches a page or a terminal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

NOT_AVAILABLE = "n/a"

_ESCAPE_SEQUENCES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_].*?(?:\x1b\\|\x07|\Z)|[ -/]*[0-~])|\x9b[0-?]*[ -/]*[@-~]", re.DOTALL
)
# C0 without tab and newline, DEL, C1, bidirectional overrides and isolates, line separators, byte order mark.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
# Lone surrogates cannot be encoded as UTF-8: a file with one could not be written at all.
_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(text: object) -> str:
    """Return `text` as one line without control characters, terminal escapes or text-direction overrides."""
    bare = _CONTROL.sub("", _ESCAPE_SEQUENCES.sub("", str(text)))
    return " ".join(_SURROGATES.sub("\ufffd", bare).split())


def number(value: float, digits: int = 3) -> str:
    """Write a finite number with `digits` significant digits.

    Plain notation from 1e-4 to 1e6 with thousands separators, scientific notation without padded exponents
    elsewhere.
    """
    if not math.isfinite(value):
        return NOT_AVAILABLE
    if value == 0:
        return "0"
    magnitude = abs(value)
    # The exponent after rounding: 0.9996 with three digits is 1.00.
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if not 1e-4 <= magnitude < 1e6:
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.{max(0, digits - 1 - int(exponent))}f}"


def integer(value: float) -> str:
    """Write a count with thousands separators."""
    return f"{round(value):,}" if math.isfinite(value) and abs(value) < 1e15 else number(value)


def percent(value: float) -> str:
    """Write a share (0..1) as percent; 0 % and 100 % only when exactly so."""
    if not math.isfinite(value):
        return NOT_AVAILABLE
    if value in (0.0, 1.0):
        return f"{value * 100:.0f} %"
    share = value * 100
    if 99.0 < share < 100.0:
        decimals = min(12, max(1, 1 - math.floor(math.log10(100.0 - share))))
        return f"{share:.{decimals}f} %"
    return f"{number(share)} %"


def level(share: float) -> str:
    """Write a quantile level: minimum, 0.1 %, median, maximum."""
    return {0.0: "minimum", 0.5: "median", 1.0: "maximum"}.get(share) or f"{tick(share * 100)} %"


def near_one(value: float) -> str:
    """Write a ratio with as many decimals as its distance from 1 needs."""
    distance = abs(value - 1.0)
    if distance == 0.0 or not 0.5 < value < 2.0:
        return "1" if value == 1.0 else number(value)
    return f"{value:.{min(12, max(3, 1 - math.floor(math.log10(distance))))}f}"


def times(value: float) -> str:
    """Write a multiple, such as 12.3x."""
    return f"{number(value)}x"


def tick(value: float) -> str:
    """Write an axis tick: as short as possible, exponents unpadded."""
    text = f"{value:.6g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        return f"{mantissa}e{int(exponent)}"
    return text


def with_unit(value: float, unit: str) -> str:
    """Write a value with its unit: counts as integers, `share of tokens` as percent of tokens, ratios bare."""
    word, _, whole_of = unit.partition(" ")
    if word in {"fraction", "share"}:
        return f"{percent(value)} {whole_of}".rstrip()
    whole = float(value).is_integer() and abs(value) < 1e15
    text = integer(value) if whole and unit not in {"nats", "nat", "ratio"} else number(value)
    return text if unit in {"", "ratio", "none"} else f"{text} {unit}"


def scalar(value: object) -> str:
    """Write a setting of any JSON type the way a reader expects it (yes/no, plain numbers, nested options)."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return tick(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(key)} = {scalar(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(scalar(item) for item in value) or "none"
    return clean(value)


def plural(count: int, noun: str) -> str:
    """Write a count with its noun: 1 token, 2 tokens, 2 layers."""
    return f"{integer(count)} {noun}{'' if count == 1 else 's'}"
