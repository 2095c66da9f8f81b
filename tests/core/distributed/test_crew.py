"""A crew's hand-outs with workers that die, fail or are slow where the test says so."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mismatch_probe.distributed.crew import Crew
from mismatch_probe.errors import ConfigError, EngineKilledError, WorkerLostError
from mismatch_probe.stages.job import Task

RECORD = ("rollout/decode", "rollout/prefill", "rollout/forced", "rollout/refit")


def tasks(num_parts, legs=RECORD):
    return [Task(leg=leg, parts=(0,) if leg == "rollout/refit" else tuple(range(num_parts))) for leg in legs]


class Hall:
    """Workers of one crew, and the order in which everything was done.

    `faults` maps (leg, part) to errors raised over that part, one a try, after half of its progress was told.
    """

    def __init__(self, faults=None, at_close=None, facts=None):
        self.faults = {key: list(errors) for key, errors in (faults or {}).items()}
        self.at_close, self.facts = at_close, facts or (lambda place: {"engine": "fake", "version": "1"})
        self.hired, self.stopped, self.begun, self.done, self.events = [], [], [], [], []
        self.lock = threading.Lock()

    def hire(self, place):
        self.hired.append(place)
        return Worker(self, place)

    def run(self, todo, size, max_restarts=3):
        return Crew(todo, size, self.hire, self.events.append, max_restarts).run()

    def told(self, leg):
        return sum(
            event["sequences"]
            for event in self.events
            if event["event"] == "progress" and event["leg"] == leg
        )


class Worker:
    def __init__(self, hall, place):
        self.hall, self.place = hall, place

    def work(self, task):
        hall, key = self.hall, (task.leg, task.parts[0])
        with hall.lock:
            if task.leg != "rollout/decode" and task.leg.startswith("rollout/"):
                assert ("rollout/decode", task.parts[0]) in hall.done
            if task.leg == "rollout/refit":
                assert len(hall.begun) == len(hall.done)
            hall.begun.append(key)
        yield {"event": "loading"}
        yield {"event": "leg", "leg": task.leg}
        yield {"event": "progress", "leg": task.leg, "sequences": 2, "tokens": 10}
        if hall.faults.get(key):
            with hall.lock:
                hall.begun.remove(key)
            raise hall.faults[key].pop(0)
        yield {"event": "progress", "leg": task.leg, "sequences": 2, "tokens": 11}
        with hall.lock:
            hall.done.append(key)
        yield {"event": "part", "leg": task.leg, "part": task.parts[0]}

    def where(self):
        return f"hall, seat {self.place}"

    def close(self):
        if self.hall.at_close is not None:
            raise self.hall.at_close
        return self.hall.facts(self.place)

    def stop(self):
        self.hall.stopped.append(self.place)


@settings(max_examples=40, deadline=None)
@given(
    num_parts=st.integers(1, 6),
    size=st.integers(1, 4),
    lost=st.lists(st.tuples(st.sampled_from(RECORD[:3]), st.integers(0, 5)), max_size=3),
)
def test_every_part_is_done_once_in_a_possible_order_whoever_is_lost(num_parts, size, lost):
    faults = {}
    for number, (leg, part) in enumerate(lost):
        faults.setdefault((leg, part % num_parts), []).append(
            WorkerLostError("gone") if number % 2 else EngineKilledError("killed by signal 9")
        )
    hall = Hall(faults)
    facts = hall.run(tasks(num_parts), size)
    expected = {(leg, part) for task in tasks(num_parts) for leg in [task.leg] for part in task.parts}
    assert len(hall.done) == len(expected) and set(hall.done) == expected
    assert hall.done[-1] == ("rollout/refit", 0)
    assert all(hall.told(task.leg) == 4 * len(task.parts) for task in tasks(num_parts))
    assert [event["event"] for event in hall.events].count("loading") == 1
    assert [event["leg"] for event in hall.events if event["event"] == "leg"].count("rollout/decode") == 1
    assert sorted(hall.stopped) == sorted(hall.hired) and facts["engine"] == "fake"


def test_more_losses_than_may_be_replaced_are_an_error():
    fault = [WorkerLostError("a Ray actor was lost")] * 3
    hall = Hall({("train/forward", 1): list(fault)})
    with pytest.raises(WorkerLostError, match="was lost"):
        hall.run(tasks(3, ("train/forward",)), 2, max_restarts=2)
    assert ("train/forward", 1) not in hall.done
    hall = Hall({("train/forward", 1): list(fault)})
    hall.run(tasks(3, ("train/forward",)), 2, max_restarts=3)
    assert sorted(hall.done) == [("train/forward", part) for part in range(3)]


def test_what_the_user_got_wrong_is_not_tried_again():
    hall = Hall({("train/forward", 0): [ConfigError("no such option", hint="leave it out")]})
    with pytest.raises(ConfigError, match="no such option") as caught:
        hall.run(tasks(2, ("train/forward",)), 1)
    assert caught.value.hint == "leave it out" and hall.hired == [0] and hall.stopped == [0]


def test_an_engine_that_dies_of_the_reload_is_that_legs_outcome_but_a_lost_actor_is_not():
    hall = Hall({("rollout/refit", 0): [EngineKilledError("killed by signal 11")]})
    with pytest.raises(EngineKilledError, match="signal 11"):
        hall.run(tasks(2), 2)
    hall = Hall({("rollout/refit", 0): [WorkerLostError("a Ray actor was lost")]})
    hall.run(tasks(2), 2)
    assert hall.done[-1] == ("rollout/refit", 0)


def test_a_failure_ends_a_worker_that_is_busy():
    release, stopped = threading.Event(), threading.Event()

    class Slow(Worker):
        def work(self, task):
            if self.place == 0:
                release.set()
                assert stopped.wait(20)
                raise WorkerLostError("stopped")
            assert release.wait(20)
            raise ConfigError("wrong")
            yield

        def stop(self):
            stopped.set()

    hall = Hall()
    hall.hire = lambda place: Slow(hall, place)
    with pytest.raises(ConfigError, match="wrong"):
        hall.run(tasks(4, ("train/forward",)), 2)
    assert not any("done again" in event.get("text", "") for event in hall.events)


def test_engines_that_differ_between_workers_are_said_and_facts_survive_a_lost_end():
    barrier = threading.Barrier(2, timeout=20)

    class Both(Worker):
        def work(self, task):
            barrier.wait()
            yield from super().work(task)

    hall = Hall(facts=lambda place: {"version": f"1.{place}", "dtype": "bfloat16"})
    hall.hire = lambda place: Both(hall, place)
    facts = hall.run(tasks(2, ("train/forward",)), 2)
    assert facts == {"version": "1.0", "dtype": "bfloat16", "details": {"crew": 2, "differs": ["version"]}}
    told = [event["text"] for event in hall.events if event["event"] == "message"]
    assert sorted(told[:2]) == ["worker 1: hall, seat 0", "worker 2: hall, seat 1"]
    assert told[2:] == ["the workers' engines differ in version"]
    for error in (WorkerLostError("a Ray actor was lost"), EngineKilledError("killed by signal 9")):
        hall = Hall(at_close=error)
        with pytest.raises(WorkerLostError, match="after its last part"):
            hall.run(tasks(2, ("train/forward",)), 1)
