"""Prompts as token ids, from wherever they come."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mismatch_probe.assets.catalog import ModelSource, random_prompts
from mismatch_probe.assets.model_facts import ModelFacts
from mismatch_probe.config.model import PromptConfig
from mismatch_probe.errors import ConfigError
from mismatch_probe.trace.parquet_pages import open_parquet

_MAX_LINE_CHARS = 4_000_000
_READERS = (".jsonl", ".json", ".parquet", ".txt")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt.

    Attributes:
        prompt_id: Unique in the set; the unit of resampling.
        token_ids: The prompt as ids.
        answer: What a reward compares with, or None.
    """

    prompt_id: str
    token_ids: tuple[int, ...]
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompts of a run.

    Attributes:
        source: Where they come from, for the report.
        prompts: The prompts.
        reward: Name of the reward for their answers, or None.
        tokenizer_path: Folder of the tokenizer that decodes responses for the reward, or None.
    """

    source: str
    prompts: tuple[Prompt, ...]
    reward: str | None
    tokenizer_path: Path | None

    @property
    def sha256(self) -> str:
        """Hash of all ids, in order."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(np.asarray([len(prompt.token_ids), *prompt.token_ids], dtype="<i8").tobytes())
        return digest.hexdigest()

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(prompt.token_ids) for prompt in self.prompts)


@dataclass(frozen=True, slots=True)
class _RawPrompt:
    prompt_id: str
    text: str | None
    messages: Sequence[Any] | None
    token_ids: Sequence[int] | None
    answer: str | None


def load_prompts(config: PromptConfig, model: ModelSource, facts: ModelFacts, *, seed: int) -> PromptSet:
    """Loads, cuts and tokenizes the prompts of a run.

    Args:
        config: What was asked for.
        model: The rollout side's checkpoint, for its own prompts and tokenizer.
        facts: Of the same checkpoint.
        seed: Seed of random prompts.

    Raises:
        ConfigError: No prompts, an unreadable file, an empty prompt, an id outside the vocabulary, or a tokenizer is
            needed and there is none.
    """
    reward = config.reward or (model.reward if config.source is None else None)
    if reward not in (None, "arithmetic"):
        raise ConfigError(f"unknown reward {reward!r}", hint="known: arithmetic")
    if config.source is None and model.prompts is None:
        if not model.is_random:
            raise ConfigError(f"{model.name} comes with no prompts", hint="give some: --prompts FILE.jsonl")
        rows = random_prompts(
            facts.vocab_size, config.num_prompts or 16, config.random_length, seed, avoid=facts.eos_token_ids
        )
        prompts = tuple(Prompt(f"random-{index}", tuple(row)) for index, row in enumerate(rows))
        return PromptSet("random token ids", prompts, None, None)
    path = Path(config.source) if config.source is not None else model.prompts
    assert path is not None  # noqa: S101 - the case without either has returned above
    raw = _read(path)
    if not raw:
        raise ConfigError(f"{path.name} holds no prompts", hint="give a file with at least one prompt")
    raw = raw[: config.num_prompts]
    prompts = tuple(_tokenize(raw, config, model))
    _check(prompts, facts, path.name)
    if reward is not None and any(prompt.answer is None for prompt in prompts):
        raise ConfigError(
            f"the reward {reward!r} needs an answer for every prompt", hint="add the column answer"
        )
    shown = str(path) if config.source is not None else f"comes with {model.name}"
    return PromptSet(shown, prompts, reward, model.path if reward is not None else None)


def _read(path: Path) -> list[_RawPrompt]:
    if path.suffix not in _READERS:
        raise ConfigError(
            f"{path.name}: prompts are read from {', '.join(_READERS)}", hint="convert the file"
        )
    if not path.is_file():
        raise ConfigError(f"prompt file {path} does not exist", hint="check the path after --prompts")
    try:
        if path.suffix == ".parquet":
            with open_parquet(path) as table:
                rows = table.read().to_pylist()
            return [_from_row(row, index, path) for index, row in enumerate(rows)]
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except (OSError, ValueError, KeyError, NotImplementedError, RuntimeError, MemoryError) as error:
        # Arrow's own errors are of these kinds.
        raise ConfigError(f"{path.name} cannot be read: {error}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if path.suffix == ".txt":
        return [_RawPrompt(f"line-{index}", line, None, None, None) for index, line in enumerate(lines)]
    return [_from_row(_json_line(line, index, path), index, path) for index, line in enumerate(lines)]


def _json_line(line: str, index: int, path: Path) -> Any:
    if len(line) > _MAX_LINE_CHARS:
        raise ConfigError(f"{path.name} line {index + 1} is too long", hint="one prompt a line")
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path.name} line {index + 1} is not JSON: {error}", hint="one JSON object a line"
        ) from error


def _from_row(row: Any, index: int, path: Path) -> _RawPrompt:
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, dict):
        raise ConfigError(f"{path.name} row {index + 1} is no object", hint='write {"prompt": "..."}')
    ids = row.get("token_ids", row.get("prompt_token_ids"))
    prompt = row.get("prompt", row.get("messages", row.get("question")))
    if ids is None and not isinstance(prompt, str | list):
        raise ConfigError(
            f"{path.name} row {index + 1} has no prompt",
            hint="columns: prompt (text or messages) or prompt_token_ids",
        )
    if ids is not None and not (isinstance(ids, list) and all(type(i) is int for i in ids)):
        raise ConfigError(f"{path.name} row {index + 1}: prompt_token_ids must be a list of whole numbers")
    answer = row.get("answer")
    return _RawPrompt(
        prompt_id=str(row.get("prompt_id", row.get("id", f"row-{index}"))),
        text=prompt if isinstance(prompt, str) else None,
        messages=prompt if isinstance(prompt, list) else None,
        token_ids=ids,
        answer=None if answer is None else str(answer),
    )


def _tokenize(raw: Sequence[_RawPrompt], config: PromptConfig, model: ModelSource) -> Iterable[Prompt]:
    encode = None
    for item in raw:
        if item.token_ids is not None:
            yield Prompt(item.prompt_id, tuple(item.token_ids), item.answer)
            continue
        encode = encode or _encoder(model, chat=config.chat_template)
        yield replace(Prompt(item.prompt_id, (), item.answer), token_ids=tuple(encode(item)))


def _encoder(model: ModelSource, *, chat: bool) -> Callable[[_RawPrompt], list[int]]:
    from mismatch_probe.preflight.environment import explain_import_failure

    try:
        from transformers import AutoTokenizer
    except Exception as error:
        raise explain_import_failure("transformers", error) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{model.name} has no tokenizer that can be loaded",
            hint="give prompts as ids: column prompt_token_ids",
        ) from error

    def encode(item: _RawPrompt) -> list[int]:
        if item.messages is not None or chat:
            if not getattr(tokenizer, "chat_template", None):
                raise ConfigError(
                    f"{model.name} has no chat template", hint="set prompts.chat_template=false, give text"
                )
            messages = item.messages or [{"role": "user", "content": item.text}]
            encoded = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True
            )
            return list(encoded["input_ids"])
        return list(tokenizer(item.text)["input_ids"])

    return encode


def _check(prompts: Sequence[Prompt], facts: ModelFacts, name: str) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.prompt_id in seen:
            raise ConfigError(
                f"{name}: prompt id {prompt.prompt_id!r} occurs twice", hint="ids must be unique"
            )
        seen.add(prompt.prompt_id)
        if not prompt.token_ids:
            raise ConfigError(
                f"{name}: prompt {prompt.prompt_id!r} is empty", hint="remove it or write a prompt"
            )
        highest, lowest = max(prompt.token_ids), min(prompt.token_ids)
        if highest >= facts.vocab_size or lowest < 0:
            wrong = highest if highest >= facts.vocab_size else lowest
            raise ConfigError(
                f"{name}: prompt {prompt.prompt_id!r} has token id {wrong}, the vocabulary has {facts.vocab_size}",
                hint="these ids belong to another tokenizer",
            )


def check_lengths(prompts: PromptSet, *, max_tokens: int, max_positions: int | None) -> int:
    """The sequence length a run needs.

    Returns:
        Longest prompt + longest response + 1 (prefill scoring samples one token more).

    Raises:
        ConfigError: It does not fit the model.
    """
    needed = prompts.longest + max_tokens + 1
    if max_positions is not None and needed > max_positions:
        longest = max(prompts.prompts, key=lambda prompt: len(prompt.token_ids))
        raise ConfigError(
            f"prompt {longest.prompt_id!r} has {prompts.longest} tokens; with {max_tokens} response tokens that is over "
            f"the {max_positions} positions of the model",
            hint=f"set sampling.max_tokens to at most {max(max_positions - prompts.longest - 1, 0)} or shorten the prompt",
        )
    return needed
