"""What a step's plan holds: the scheduler and the pages, without a model."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.budget import LEAST_CHUNK, TokenBudget
from worker.engine.config import EngineConfig
from worker.engine.headroom import Headroom
from worker.engine.pages import PagePool
from worker.engine.plan import Plan
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence, SequenceParams, State

PAGE = 16


class Bench:
    """A scheduler, and what the engine does after each plan: tokens are computed, and who caught up gets one more."""

    def __init__(self, num_pages: int = 100, **config: Any) -> None:
        settings = EngineConfig(**{"page_size": PAGE, "max_rows": 4, "token_budget": 32, "headroom": 0.0, **config})
        self.pool = PagePool(num_pages, settings.page_size)
        self.scheduler = Scheduler(settings, self.pool)
        self.arrivals = 0
        self.known: dict[Sequence, list[int]] = {}  # pages, as a runner would know them

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
        assert plan.caught_up == caught_up
        for sequence in (*plan.admitted, *plan.grown):
            self.known[sequence] = list(sequence.pages)
        assert all(self.known[sequence] == sequence.pages for sequence in plan.tokens), "a page is not told of"
        for sequence, computed in self.scheduler.launched(plan):
            self.scheduler.enter(sequence, computed)
        size = self.pool.page_size
        assert all(s.entered == s.computed // size for s in plan.tokens), "a page is not entered"
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
    bench = Bench(max_rows=1, token_budget=16)
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


def test_nobody_is_admitted_in_a_step_in_which_pages_ran_out():
    """Else the pages just freed would be missing again in the next step."""
    bench = Bench(num_pages=4, watermark=0.0, max_rows=3)
    first, second = bench.add(PAGE), bench.add(PAGE)
    bench.steps_until(first, second)
    while first.computed < 2 * PAGE:
        bench.step()
    late = bench.add(1)
    plan = bench.step()
    assert (plan.preempted, plan.admitted) == ([second], [])
    assert late.state is State.WAITING


def test_lower_priority_makes_way_when_there_is_no_row():
    """The latest of the least important goes, and the urgent one runs in the same step; later all end."""
    bench = Bench(max_rows=2)
    early, late = bench.add(3, 9, priority=1), bench.add(3, 9, priority=1)
    bench.step()
    urgent = bench.add(3, 9, priority=0)
    plan = bench.step()
    assert (plan.preempted, plan.admitted) == ([late], [urgent])
    assert set(plan.tokens) == {early, urgent}
    while bench.scheduler.running or bench.scheduler.num_waiting:
        bench.step()
    assert all(len(sequence.output) == 9 for sequence in (early, late, urgent))


def test_lower_priority_makes_way_when_there_are_no_pages():
    """As many of them as it takes, the latest first."""
    bench = Bench(num_pages=8, watermark=0.0, token_budget=200)
    lesser = [bench.add(2 * PAGE - 8, priority=1) for _ in range(4)]
    bench.step()
    urgent = bench.add(4 * PAGE - 8, priority=0)
    plan = bench.step()
    assert (plan.preempted, plan.admitted) == ([lesser[3], lesser[2]], [urgent])


def test_nobody_makes_way_for_an_equal_or_in_vain():
    """Who came earlier is no reason; nor is priority where all that could go would not be enough."""
    bench = Bench(num_pages=8, watermark=0.0, token_budget=200, max_rows=2)
    important, lesser = bench.add(5 * PAGE, priority=0), bench.add(PAGE, priority=1)
    bench.step()
    equal = bench.add(PAGE, priority=1)
    assert bench.step().preempted == []
    bench.scheduler.finish(equal)
    bench.add(6 * PAGE, priority=0)
    assert bench.step().preempted == []
    assert {important, lesser} == set(bench.scheduler.running)


def test_what_decodes_leave_of_the_budget_goes_by_rank():
    """An urgent prompt that comes while a long one is in chunks gets the budget first, though not yet admitted."""
    bench = Bench()
    long = bench.add(500, priority=1)
    bench.step()
    urgent = bench.add(40, priority=0)
    assert bench.step().tokens == {urgent: 32}
    assert bench.step().tokens == {urgent: 8, long: 24}


def test_admission_leaves_room_for_what_the_running_could_still_need():
    """Half of it, here: of 20 pages one has 3 and may take 9 more, who comes may take 12: 10 stay free besides."""
    bench = Bench(num_pages=20, watermark=0.0, headroom=0.5, token_budget=200)
    bench.add(2 * PAGE, 10 * PAGE)
    bench.step()
    large, fits = bench.add(9 * PAGE, 12 * PAGE), bench.add(2 * PAGE, 12 * PAGE)
    assert bench.step().admitted == []
    bench.scheduler.finish(large)
    assert bench.step().admitted == [fits]


def test_headroom_rises_when_pages_run_out_and_decays_while_they_do_not():
    """Never above all that could be needed."""
    headroom = Headroom(3, 0.0)
    assert headroom.pages(100) == 3
    headroom.step(preempted=True)
    risen = headroom.pages(100)
    assert risen > 3
    for _ in range(50):
        headroom.step(preempted=True)
    assert headroom.pages(100) == 103
    for _ in range(10_000):
        headroom.step(preempted=False)
    assert headroom.pages(100) == 3


@pytest.mark.parametrize("headroom", [0.0, 0.2])
def test_in_half_the_pool_that_all_would_need_little_is_computed_twice(headroom: float):
    """256 heavy-tailed jobs that mostly end far below their limit: under 5 %, and in fewer steps than with each job's
    limit reserved."""
    steps, recomputed = heavy_tailed(headroom)
    reserving, none = heavy_tailed(1.0, stays=True)
    assert none == 0
    assert recomputed < 0.05
    assert steps < 0.7 * reserving


def heavy_tailed(headroom: float, *, stays: bool = False) -> tuple[int, float]:
    """Steps, and tokens computed twice over tokens generated, in half the pages that the jobs would take.

    stays: the head-room neither rises nor decays.
    """
    chance = Random(1)
    bench = Bench(330, max_rows=64, token_budget=512, headroom=headroom, page_size=32)
    length = {}
    for _ in range(256):
        prompt, output = (min(512, int(chance.lognormvariate(*shape))) + 8 for shape in ((4.85, 0.85), (4.16, 1.1)))
        length[bench.add(prompt, 520)] = output
    steps = 0
    while bench.scheduler.running or bench.scheduler.num_waiting:
        bench.step()
        steps += 1
        if stays:
            bench.scheduler._headroom.share = headroom
        for sequence in [s for s in bench.scheduler.running if len(s.output) >= length[s]]:
            bench.scheduler.finish(sequence)
    return steps, bench.scheduler.counts.recomputed_tokens / sum(length.values())


def test_the_budget_moves_to_what_fits_the_time_aimed_at():
    """Whatever a token costs: 1 ms each and 20 ms a step, in 0.1 s fit 80; where it costs a tenth, the most allowed."""
    for cost_s, fitting in ((1e-3, 80), (1e-4, 512)):
        budget = TokenBudget(512, 0.1)
        for _ in range(60):
            tokens = budget.next(8)
            budget.took(tokens, 8, 0.02 + cost_s * tokens)
        assert budget.next(8) == pytest.approx(fitting, abs=2)


def test_a_prompt_gets_on_however_slow_steps_are():
    """A chunk of LEAST_CHUNK beside any number of decodes; and all of the budget where nobody waits for a token."""
    budget = TokenBudget(512, 0.1)
    for _ in range(20):
        budget.took(512, 8, 5.0)
    assert budget.next(50) == 50 + LEAST_CHUNK
    assert budget.next(0) == 512
    assert TokenBudget(512, None).next(50) == 512


def test_what_a_preempted_sequence_was_to_compute_goes_to_others():
    """Its share of the budget is spent in the same step."""
    bench = Bench(num_pages=9, watermark=0.0, token_budget=16)
    least = bench.add(1, priority=2)
    bench.steps_until(least)
    important = bench.add(15, priority=0)
    bench.steps_until(important)
    long = bench.add(7 * PAGE, priority=1)
    plan = bench.step()
    while not plan.preempted:
        plan = bench.step()
    assert plan.preempted == [least]
    assert plan.tokens == {important: 1, long: 15}


def test_a_sequence_that_was_cancelled_while_waiting_is_not_admitted():
    """Those behind it come in its place."""
    bench = Bench(max_rows=1)
    bench.add(1, max_tokens=1)
    gone, next_one = bench.add(1), bench.add(1)
    bench.scheduler.finish(gone)
    bench.step()
    assert bench.step().admitted == [next_one]
    assert gone.state is State.FINISHED


def test_who_is_left_of_a_line_that_many_left_is_admitted_in_order():
    """Cancelled ones are gone at once from the count, wherever they stood; those that stay keep their places."""
    bench = Bench(max_rows=1)
    running = bench.add(3)
    bench.step()
    line = [bench.add(3, max_tokens=1) for _ in range(20)]
    rng = Random(5)
    left = set(rng.sample(range(20), 4))
    for count, at in enumerate(rng.sample(sorted(set(range(20)) - left), 16), 1):
        bench.scheduler.finish(line[at])
        assert bench.scheduler.num_waiting == 20 - count
        bench.scheduler.check()
    bench.scheduler.finish(running)
    admitted = [sequence for _ in range(4) for sequence in bench.step().admitted]
    assert admitted == [line[at] for at in sorted(left)]
    assert bench.scheduler.num_waiting == 0


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 60), st.integers(0, 2), st.integers(0, 6)), max_size=12),
    st.integers(10, 24),
    st.integers(1, 4),
    st.integers(PAGE, 40),
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
