"""Bytes changed at random, where no coverage-guided fuzzer is at hand."""

from __future__ import annotations

import random

_WORDS = (
    b"null", b"NaN", b"-Infinity", b"1e999", b"true", b"[]", b"{}", b'""', b"-1", b"0", b"1e-320", b"9" * 40, b'"\\u0000"',
    b"../../etc/passwd", b"\xff\xfe", b"__class__", b"&a", b"*a", b"!!", b"=", b".", b"\n", b"\x00" * 8, b"\xff" * 8,
)  # fmt: skip
MAX_BYTES = 1 << 18


def mutate(data: bytes, corpus: list[bytes], generator: random.Random) -> bytes:
    """One to eight changes: bits, bytes, words, cuts, repeats, and pieces of another seed."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 8)):
        at = generator.randrange(len(changed) + 1)
        kind = generator.randrange(7)
        if kind == 0 and changed:
            changed[at % len(changed)] ^= 1 << generator.randrange(8)
        elif kind == 1 and changed:
            changed[at % len(changed)] = generator.randrange(256)
        elif kind == 2:
            changed[at:at] = generator.choice(_WORDS)
        elif kind == 3:
            word = generator.choice(_WORDS)
            changed[at : at + len(word)] = word
        elif kind == 4:
            del changed[at : at + generator.randint(1, 64)]
        elif kind == 5:
            piece = changed[at : at + generator.randint(1, 200)]
            changed[at:at] = piece * generator.randint(1, 4)
        else:
            other = generator.choice(corpus)
            start = generator.randrange(len(other) + 1)
            changed[at:at] = other[start : start + generator.randint(1, 300)]
    return bytes(changed[:MAX_BYTES])
