"""Progress over the stages of an audit, from the events of a real one (48 prompts, transformers on both sides), by its clock."""

import io
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from mismatch_probe_cli.console import ProgressWatcher
from mismatch_probe_cli.pace import Pace, duration

EVENTS = [
    json.loads(line) for line in (Path(__file__).parent / "audit_events.jsonl").read_text().splitlines()
]
STAGES = [name for name, _ in next(e[2] for e in EVENTS if e[1] == "stages_planned")]
SLOW = 60.0
"""A run so many times as long, for the lines that come every 15 seconds."""


def followed(width=200, *, terminal=False, slow=SLOW):
    """What a watcher shows, and the time of each piece."""
    stream, now, shown = io.StringIO(), [0.0], []
    console = Console(
        file=stream, width=width, force_terminal=terminal, color_system=None, legacy_windows=False
    )
    with ProgressWatcher(lambda: now[0], console) as watcher:
        for time, name, *arguments in EVENTS:
            now[0] = time * slow
            before = len(stream.getvalue())
            getattr(watcher, name)(*arguments)
            shown += [(now[0], line) for line in stream.getvalue()[before:].splitlines()]
    return shown, stream.getvalue()


def spans():
    began = {e[2]: e[0] * SLOW for e in EVENTS if e[1] == "stage_started"}
    return {e[2]: (began[e[2]], e[0] * SLOW) for e in EVENTS if e[1] == "stage_finished"}


def seconds(text):
    if " h " in text:
        hours, minutes = re.fullmatch(r"(\d+) h (\d+) min", text).groups()
        return 3600 * int(hours) + 60 * int(minutes)
    minutes, rest = text.split(":")
    return 60 * int(minutes) + int(rest)


def test_every_stage_says_its_place_and_what_it_took():
    lines = [line for _, line in followed()[0]]
    tokens, counted = Counter(), {}
    for time, name, *arguments in EVENTS:
        if name == "stage_progress" and arguments[2]:
            tokens[arguments[0]] += arguments[2]
            counted[arguments[0]] = time * SLOW
    assert len(STAGES) == 8
    for number, stage in enumerate(STAGES, 1):
        began, ended = spans()[stage]
        (first,) = (line for line in lines if line.startswith(f"stage {number} of 8, {stage}: "))
        assert "sequences" in first
        (last,) = (line for line in lines if line.startswith(f"{stage}: done in "))
        assert f"done in {ended - began:.1f} s, " in last
        assert f" {tokens[stage]:,} tokens, {tokens[stage] / (counted[stage] - began):,.0f} tokens/s" in last
    assert not any("\x1b" in line for line in lines)


def test_time_left_is_the_pace_of_this_stage_times_the_rest():
    checked = 0
    for now, line in followed()[0]:
        found = re.match(r"([\w/]+): (\d+) of (\d+) sequences, (?:.* tokens/s, )?([^,;]*) left", line)
        if found:
            done, total = int(found[2]), int(found[3])
            expected = (now - spans()[found[1]][0]) / done * (total - done)
            assert abs(seconds(found[4]) - expected) <= 1, line
            checked += 1
    assert checked >= 20


def kind(stage):
    return "train" if stage.startswith("train/") else stage


def test_nothing_is_said_of_the_whole_before_something_was_timed():
    shown = followed()[0]
    first = next(now for now, line in shown if "all stages" in line)
    assert spans()["rollout/decode"][0] < first
    for now, line in shown:
        if "all stages" not in line:
            continue
        untimed = int(re.search(r"and (\d+) stages? not timed yet", line)[1]) if "not timed" in line else 0
        known = {kind(stage) for stage, (began, _) in spans().items() if began < now}
        unknown = [stage for stage in STAGES if kind(stage) not in known]
        assert untimed == len(unknown), line
    assert "all stages" not in [line for _, line in shown][-1]


def test_the_whole_shrinks_to_the_last_stage():
    lines = [line for _, line in followed()[0] if line.startswith("simulate: ") and "all stages" in line]
    assert lines
    for line in lines:
        stage, whole = (
            re.search(r", ([^,]*) left;", line)[1],
            re.search(r"all stages: about (.*) left", line)[1],
        )
        assert stage == whole


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_bars_keep_to_the_terminal(width):
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", followed(width, terminal=True)[1])
    lines = text.replace("\r", "\n").splitlines()
    assert max(map(cell_len, lines)) <= width
    last = lines[-len(STAGES) - 1 :]
    assert last[0].split()[0] == "stages" and "8/8" in last[0]
    assert [line.split()[0] for line in last[1:]] == STAGES
    assert all(("tokens/s" if width >= 60 else "tok/s") in line for line in last[1:])


def test_a_stage_that_nobody_planned_has_no_place():
    stream = io.StringIO()
    with ProgressWatcher(lambda: 0.0, Console(file=stream, width=100)) as watcher:
        watcher.stage_started("simulate", 10, 0, "a verb of its own")
        watcher.stage_progress("elsewhere", 1, 1)
        watcher.stage_finished("elsewhere")
        watcher.stage_finished("simulate")
    assert stream.getvalue().splitlines() == [
        "simulate: 10 sequences (a verb of its own)",
        "simulate: done in 0.0 s",
    ]


def test_what_an_earlier_run_did_is_no_pace():
    pace = Pace()
    pace.plan([("train/forward", 20)])
    stage = pace.start("train/forward", 100, 80, now=0.0)
    assert stage.seconds_left(50.0) is None and pace.whole(50.0).seconds_left is None
    pace.advance("train/forward", 10, 1000, now=40.0)
    assert stage.seconds_left(50.0) == pytest.approx(50.0)
    assert stage.tokens_per_second() == pytest.approx(25.0), "over the time that the tokens took"
    pace.advance("train/forward", -10, -1000, now=50.0)
    assert stage.seconds_left(50.0) is None and stage.tokens_per_second() is None


def test_stages_to_come_take_what_their_kind_took():
    pace = Pace()
    pace.plan([("rollout/decode", 10), ("rollout/forced", 10), ("train/forward", 10), ("simulate", None)])
    pace.start("rollout/decode", 10, 0, now=0.0)
    pace.advance("rollout/decode", 10, 100, now=20.0)
    pace.finish("rollout/decode", now=20.0)
    whole = pace.whole(30.0)
    assert (whole.ended, whole.stages, whole.untimed) == (1, 4, 2)
    assert whole.seconds_left == pytest.approx(20.0)


@given(st.floats(0, 1e7))
def test_durations_can_be_read_back(value):
    step = 0.5 if value < 3599 else 31
    assert abs(seconds(duration(value)) - value) <= step
