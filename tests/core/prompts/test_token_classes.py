import numpy as np
import pytest

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.prompts.token_classes import CLASSES, classify, classify_vocabulary


@pytest.mark.parametrize(
    ("text", "name"),
    [("7", "digits"), (" 42", "digits"), ("word", "words"), (" Wort", "words"), ("\n", "blanks"), ("=", "marks"),
     ("x1", "mixed"), ("", "special"), ("\u65e5\u672c", "words")],
)  # fmt: skip
def test_classes(text, name):
    assert CLASSES[classify(text)] == name


def test_the_embedded_vocabulary():
    folder = resolve_model("tiny-qwen3-moe").path
    classes = classify_vocabulary(folder, 64)
    assert classes is not None
    assert classes.shape == (64,)
    # Ten digits, and every kind of token that the task writes.
    assert (classes == CLASSES.index("digits")).sum() == 10
    assert {CLASSES[index] for index in np.unique(classes)} >= {
        "special",
        "digits",
        "words",
        "blanks",
        "marks",
    }
    # Rows that pad the head beyond the tokenizer are special.
    assert (classify_vocabulary(folder, 96)[64:] == CLASSES.index("special")).all()


def test_no_tokenizer_or_a_broken_one_is_unknown(tmp_path):
    assert classify_vocabulary(tmp_path, 64) is None
    (tmp_path / "tokenizer.json").write_text("{")
    assert classify_vocabulary(tmp_path, 64) is None
