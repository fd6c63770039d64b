"""What a step's plan holds: the scheduler and the pages, without a model."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.config import EngineConfig
from worker.engine.pages import PagePool
from worker.engine.scheduler import Plan, Scheduler
from worker.engine.sequence import Sequence, SequenceParams, State

PAGE = 16


class Bench:
    """A scheduler, and what the engine does after each plan: tokens are computed, and who caught up gets one more."""

    def __init__(self, num_pages: int = 100, **config: Any) -> None:
        self.pool = PagePool(num_pages, PAGE)
        self.scheduler = Scheduler(
            EngineConfig(page_size=PAGE, **{"max_rows": 4, "token_budget": 32, **config}), self.pool
        )
        self.arrivals = 0

    def add(self, prompt: int, max_tokens: int = 1000, priority: int = 0) -> Sequence:
        own = [self.arrivals + 2] * prompt  # nobody else begins like it
        sequence = Sequence(self.arrivals, own, SequenceParams(max_tokens), priority, self.arrivals)
        self.arrivals += 1
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> Plan:
        plan = self.scheduler.plan()
        self.scheduler.check()
        caught_up = [sequence for sequence, count in plan.tokens.items() if count == sequence.remaining]
        self.scheduler.advance(plan)
        for sequence in caught_up:
            sequence.output.append(1)
            if len(sequence.output) >= sequence.params.max_tokens:
                self.scheduler.finish(sequence)
        self.scheduler.check()
        return plan

    def steps_until(self, *running: Sequence) -> None:
        """Step until each of `running` decodes."""
        while any(sequence.remaining != 1 or sequence.state is not State.RUNNING for sequence in running):
            self.step()


def test_a_plan_holds_decodes_and_a_chunk_of_a_prompt_side_by_side():
    """The one that decodes gets its token, the long prompt what is left of the budget, in one step."""
    bench = Bench()
    short, long = bench.add(3), bench.add(100)
    assert bench.step().tokens == {short: 3, long: 29}
    assert bench.step().tokens == {short: 1, long: 31}


def test_rows_that_add_one_token_stand_first():
    """Also one whose last chunk happens to be a single token; num_decode counts them."""
    bench = Bench()
    long, other = bench.add(32 + 1), bench.add(40)
    bench.step()
    assert long.remaining == 1
    plan = bench.step()
    assert list(plan.tokens.items()) == [(long, 1), (other, 31)]
    assert plan.num_decode == 1


def test_a_long_prompt_never_keeps_the_others_from_decoding():
    """While 900 tokens of prompt go through in chunks, both neighbours decode in every step."""
    bench = Bench()
    one, two = bench.add(2), bench.add(2)
    bench.steps_until(one, two)
    long = bench.add(900)
    steps = 0
    while long.remaining > 1:
        plan = bench.step()
        assert plan.tokens[one] == plan.tokens[two] == 1
        assert plan.tokens[long] == min(30, 900 - 30 * steps)
        steps += 1
    assert steps == 30


def test_a_row_that_was_freed_is_taken_in_the_next_step():
    """With one row for two, the second starts in the step after the first's last."""
    bench = Bench(max_rows=1)
    first, second = bench.add(3, max_tokens=2), bench.add(3)
    assert [list(bench.step().tokens) for _ in range(3)] == [[first], [first], [second]]


def test_several_are_admitted_in_one_step_as_rows_and_budget_last():
    """Rows first: four of six; then the budget: what is left of it goes to the last one admitted."""
    bench = Bench()
    sequences = [bench.add(10) for _ in range(6)]
    plan = bench.step()
    assert plan.admitted == sequences[:4]
    assert list(plan.tokens.values()) == [10, 10, 10, 2]


def test_admission_goes_by_priority_and_then_by_arrival():
    """A lower number first; among equals who came first."""
    bench = Bench(max_rows=1, token_budget=8)
    late_low, first, second, urgent = bench.add(4, 1, 5), bench.add(4, 1, 1), bench.add(4, 1, 1), bench.add(4, 1, 0)
    assert [next(iter(bench.step().tokens)) for _ in range(4)] == [urgent, first, second, late_low]


def test_nobody_is_passed_over():
    """A long prompt that waits for pages isn't overtaken by a short one that would fit; so it is never starved."""
    bench = Bench(num_pages=10, watermark=0.0, token_budget=200)
    running = bench.add(5 * PAGE, max_tokens=3)
    bench.step()
    long, short = bench.add(8 * PAGE), bench.add(1)
    assert bench.step().admitted == []
    assert bench.step().admitted == []
    assert running.state is State.FINISHED
    assert bench.step().admitted == [long, short]


def test_a_prompt_is_admitted_with_all_its_pages():
    """Pages for the whole prompt are taken at once, though its chunks come over many steps."""
    bench = Bench()
    long = bench.add(10 * PAGE)
    bench.step()
    assert long.computed == 32
    assert len(long.pages) == 10


def test_the_watermark_stays_free_when_others_are_admitted():
    """Two of ten pages are kept for those that run; the only sequence there is may have them all."""
    bench = Bench(num_pages=10, watermark=0.2, token_budget=200)
    lone = bench.add(9 * PAGE, max_tokens=2)
    assert bench.step().admitted == [lone]
    bench.step()
    first, second = bench.add(6 * PAGE), bench.add(3 * PAGE)
    assert bench.step().admitted == [first]
    assert bench.pool.num_free == 4
    assert bench.step().admitted == []
    assert second.state is State.WAITING


def test_a_decode_takes_a_page_only_when_its_last_is_full():
    """Sixteen tokens fill the first page; the seventeenth takes the second."""
    bench = Bench()
    sequence = bench.add(PAGE - 1)
    pages = []
    for _ in range(3):
        bench.step()
        pages.append(len(sequence.pages))
    assert pages == [1, 1, 2]


def test_when_pages_run_out_the_latest_of_the_least_important_goes():
    """Though it came first. It loses row, pages and what was computed, keeps its tokens and its place in line."""
    bench = Bench(num_pages=6, watermark=0.0, max_rows=3)
    least = bench.add(PAGE, priority=2)
    bench.steps_until(least)
    early, late = bench.add(PAGE, priority=1), bench.add(PAGE, priority=1)
    bench.steps_until(early, late)
    behind = bench.add(1, priority=2)
    plans = [bench.step()]
    while len(bench.scheduler.running) > 1:
        plans.append(bench.step())
    gone = [sequence for plan in plans for sequence in plan.preempted]
    assert gone == [least, late]
    for sequence in gone:
        assert (sequence.state, sequence.row, sequence.pages, sequence.computed) == (State.WAITING, None, [], 0)
        assert len(sequence.output) > PAGE
    assert early.rank < late.rank < least.rank < behind.rank
    assert not any(plan.tokens.keys() & plan.preempted for plan in plans)


def test_a_sequence_that_is_itself_the_least_important_gives_way():
    """The late one needs the page, and the early one keeps running."""
    bench = Bench(num_pages=4, watermark=0.0)
    early = bench.add(PAGE // 2)
    bench.steps_until(early)
    late = bench.add(3 * PAGE)
    plan = bench.step()
    while not plan.preempted:
        plan = bench.step()
    assert plan.preempted == [late]
    assert list(plan.tokens) == [early]


def test_nobody_is_admitted_in_a_step_that_preempted():
    """Even the most important: else the pages just freed would be missing again in the next step."""
    bench = Bench(num_pages=4, watermark=0.0, max_rows=2)
    first, second = bench.add(PAGE), bench.add(PAGE)
    bench.steps_until(first, second)
    urgent = bench.add(1, priority=-1)
    plan = bench.step()
    while not plan.preempted:
        plan = bench.step()
    assert plan.admitted == []
    assert bench.step().admitted == [urgent]


def test_what_a_preempted_sequence_was_to_compute_goes_to_others():
    """Its share of the budget is spent in the same step."""
    bench = Bench(num_pages=9, watermark=0.0, token_budget=4)
    least = bench.add(1, priority=2)
    bench.steps_until(least)
    important = bench.add(15, priority=0)
    bench.steps_until(important)
    long = bench.add(7 * PAGE, priority=1)
    plan = bench.step()
    while not plan.preempted:
        plan = bench.step()
    assert plan.preempted == [least]
    assert plan.tokens == {important: 1, long: 3}


def test_a_sequence_that_was_cancelled_while_waiting_is_not_admitted():
    """Those behind it come in its place."""
    bench = Bench(max_rows=1)
    bench.add(1, max_tokens=1)
    gone, next_one = bench.add(1), bench.add(1)
    bench.scheduler.finish(gone)
    bench.step()
    assert bench.step().admitted == [next_one]
    assert gone.state is State.FINISHED


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 60), st.integers(0, 2), st.integers(0, 6)), max_size=12),
    st.integers(10, 24),
    st.integers(1, 4),
    st.integers(4, 40),
    st.sampled_from([0.0, 0.1, 0.3]),
)
def test_every_load_is_worked_off_within_the_budget(
    load: list[tuple[int, int, int, int]], num_pages: int, max_rows: int, token_budget: int, watermark: float
):
    """Each step does something, keeps to the budget and lets every decode go on unless it is preempted; all end."""
    bench = Bench(num_pages, max_rows=max_rows, token_budget=token_budget, watermark=watermark)
    waiting = [(prompt, output, priority, when) for prompt, output, priority, when in load if prompt + output <= 160]
    added: list[Sequence] = []
    step = 0
    while waiting or any(sequence.state is not State.FINISHED for sequence in added):
        for prompt, output, priority, _ in [item for item in waiting if item[3] <= step]:
            added.append(bench.add(prompt, output, priority))
        waiting = [item for item in waiting if item[3] > step]
        decoding = {s for s in bench.scheduler.running if s.remaining == 1}
        some = bool(bench.scheduler.running or bench.scheduler.num_waiting)
        plan = bench.step()
        assert bool(plan.tokens) == some
        assert sum(plan.tokens.values()) <= token_budget
        assert decoding <= set(plan.tokens) | set(plan.preempted)
        assert list(plan.tokens.values()) == sorted(plan.tokens.values(), key=lambda count: count > 1)
        step += 1
        assert step < 20_000
    assert bench.pool.num_free == num_pages
