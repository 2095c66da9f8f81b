import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mismatch_probe.assets.catalog import resolve_model
from mismatch_probe.assets.model_facts import read_model_facts
from mismatch_probe.config.model import PromptConfig
from mismatch_probe.errors import ConfigError
from mismatch_probe.prompts.prompt_set import check_lengths, load_prompts

MODEL = resolve_model("tiny-qwen3-moe")
FACTS = read_model_facts(MODEL.path)


def load(path=None, **fields):
    return load_prompts(
        PromptConfig(source=None if path is None else str(path), **fields), MODEL, FACTS, seed=0
    )


def test_the_model_brings_its_own_prompts_with_answers():
    prompts = load(num_prompts=5)
    assert len(prompts.prompts) == 5
    assert prompts.reward == "arithmetic"
    assert all(prompt.answer is not None and prompt.token_ids for prompt in prompts.prompts)


def test_the_hash_is_of_the_ids_in_order(tmp_path):
    def hash_of(rows):
        path = tmp_path / "p.jsonl"
        path.write_text(
            "\n".join(json.dumps({"prompt_id": str(i), "prompt_token_ids": r}) for i, r in enumerate(rows))
        )
        return load(path).sha256

    assert hash_of([[1, 2], [3]]) == hash_of([[1, 2], [3]])
    # The same ids cut elsewhere are other prompts.
    assert len({hash_of([[1, 2], [3]]), hash_of([[1], [2, 3]]), hash_of([[3], [1, 2]])}) == 3


def test_jsonl_text_and_parquet_give_the_same_ids(tmp_path):
    lines = ["1+2=", "3+4="]
    (tmp_path / "p.txt").write_text("\n".join(lines) + "\n\n")
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"prompt": line}) for line in lines))
    pq.write_table(pa.table({"prompt": lines}), tmp_path / "p.parquet")
    ids = [
        [p.token_ids for p in load(tmp_path / f"p.{kind}").prompts] for kind in ("txt", "jsonl", "parquet")
    ]
    assert ids[0] == ids[1] == ids[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no prompts"),
        ("\n\n", "no prompts"),
        ('{"prompt": ""', "not JSON"),
        ('{"text": "a"}', "no prompt"),
        ('{"prompt_token_ids": [], "prompt_id": "e"}', "empty"),
        ('{"prompt_token_ids": [1, 99999]}', "vocabulary"),
        ('{"prompt_token_ids": [-1]}', "vocabulary"),
        ('{"prompt_token_ids": ["1"]}', "whole numbers"),
        ('{"prompt_token_ids": [true]}', "whole numbers"),
        ("[1, 2]", "no object"),
        ('{"id": "a", "prompt": "1"}\n{"id": "a", "prompt": "2"}', "twice"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_bad_prompt_files_are_clear_errors(tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_files_that_cannot_be_read_are_clear_errors(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "no.jsonl")
    (tmp_path / "p.csv").write_text("a")
    with pytest.raises(ConfigError, match="read from"):
        load(tmp_path / "p.csv")
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(tmp_path / "p.txt")
    (tmp_path / "p.parquet").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "p.parquet")


def test_a_reward_needs_answers(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "1+1="}')
    with pytest.raises(ConfigError, match="answer"):
        load(path, reward="arithmetic")
    with pytest.raises(ConfigError, match="unknown reward"):
        load(path, reward="vibes")


def test_a_chat_prompt_needs_a_chat_template(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "1+1="}]}')
    with pytest.raises(ConfigError, match="chat template"):
        load(path)


def test_lengths_must_fit_the_model():
    prompts = load(num_prompts=3)
    longest = prompts.longest
    assert check_lengths(prompts, max_tokens=10, max_positions=longest + 11) == longest + 11
    with pytest.raises(ConfigError, match="positions") as caught:
        check_lengths(prompts, max_tokens=11, max_positions=longest + 11)
    assert "10" in (caught.value.hint or "")
