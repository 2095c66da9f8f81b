"""Two vLLM replicas in actors of a local Ray, one of them killed: the result is that of one undisturbed process."""

import os
import re
import signal

import pytest

from mismatch_probe.config.load import load_config
from mismatch_probe.stages.events import SilentWatcher
from mismatch_probe.stages.executor import open_executor
from mismatch_probe.stages.plan import make_plan
from mismatch_probe.stages.whole_audit import audit_run
from mismatch_probe.trace.run_directory import RunDirectory

SETTINGS = (
    "prompts.num_prompts=8", "part_sequences=8", "sampling.max_tokens=64", "train.options.replay_controls=0",
    'legs=["rollout/decode", "rollout/prefill", "train/forward", "train/replay"]',
)  # fmt: skip


class Killer(SilentWatcher):
    """Kills the first actor as soon as another one has told of progress; by then both have their parts in hand."""

    def __init__(self):
        self.actor, self.killed, self.said = None, None, []

    def message(self, text):
        self.said.append(text)
        found = re.match(r"worker 1: node \S+, process (\d+)", text)
        if found is not None and self.actor is None:
            self.actor = int(found[1])

    def stage_progress(self, stage, sequences, tokens):
        if stage == "rollout/decode" and self.actor is not None and self.killed is None:
            self.killed = self.actor
            os.kill(self.actor, signal.SIGKILL)


def audited(path, watcher, *settings):
    """Parts and result, without what names the run."""
    plan = make_plan(load_config(None, (*SETTINGS, *settings), {"out": str(path)}), watcher)
    run = RunDirectory(path)
    with run.claim(), open_executor(plan.config) as execute:
        result = audit_run(run, plan, watcher, execute, command="audit", resume=False, simulate=False)
    crew = [result["provenance"][side]["details"].pop("crew", 1) for side in ("rollout", "train")]
    for name in ("created_at", "run_id"):
        del result["provenance"][name]
    assert not list(path.rglob("*.partial"))
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("part-*")}, result, crew


@pytest.mark.engine
@pytest.mark.slow
def test_killing_an_actor_changes_nothing_in_the_result(tmp_path, monkeypatch):
    # A CPU may add in another order with another number of threads: the same here and there.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    killer = Killer()
    parts, result, crew = audited(tmp_path / "crew", killer, "ray.workers=2")
    assert any(
        re.match(r"a Ray actor was lost: rollout/decode part \d is done again", text) for text in killer.said
    )
    assert sum(text.startswith("worker 1: ") for text in killer.said) == 3, "replaced once, and one scorer"
    alone_parts, alone_result, _ = audited(tmp_path / "alone", SilentWatcher())
    assert len(parts) > 4 * 4 and parts == alone_parts
    assert result == alone_result
    assert crew[1] == 2
