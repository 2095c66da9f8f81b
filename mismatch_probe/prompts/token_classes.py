"""What kind of text each token of a vocabulary stands for: digits, words, marks, blanks, specials."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

CLASSES = ("special", "digits", "words", "blanks", "marks", "mixed")
_SPECIAL, _DIGITS, _WORDS, _BLANKS, _MARKS, _MIXED = range(len(CLASSES))


def classify_vocabulary(folder: Path, vocab_size: int) -> npt.NDArray[np.int64] | None:
    """Classifies every id of a tokenizer.

    Args:
        folder: Where its tokenizer.json is.
        vocab_size: Rows of the model's head; ids beyond the tokenizer's own are special.

    Returns:
        int64 [vocab_size] indices into `CLASSES`, or None where there is no tokenizer.json that can be read.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # the library raises bare Exception for a file it cannot read; classes are then unknown
        return None
    special = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    classes = np.full(vocab_size, _SPECIAL, dtype=np.int64)
    for index in range(min(vocab_size, tokenizer.get_vocab_size())):
        if index not in special:
            classes[index] = classify(tokenizer.decode([index], skip_special_tokens=False))
    return classes


def classify(text: str) -> int:
    """Index into `CLASSES` of one token's text; a leading blank, as most tokenizers write it, does not count."""
    if not text:
        return _SPECIAL
    core = text.strip()
    if not core:
        return _BLANKS
    if core.isdigit():
        return _DIGITS
    if core.isalpha():
        return _WORDS
    return _MIXED if any(character.isalnum() for character in core) else _MARKS
