"""Which sequences run in the next step, and how many tokens of each.

There are no phases: a sequence's `computed` chases its `num_tokens`. Those that decode come first, so decoding never
starves; what the step's budget leaves (budget.py) goes by rank to those still in their prompt and to those waiting, who
are admitted while the pages leave head-room for the running (headroom.py).
"""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections.abc import Iterable
from operator import attrgetter

from worker.engine.budget import TokenBudget
from worker.engine.config import EngineConfig
from worker.engine.headroom import Headroom
from worker.engine.outcome import SchedulerCounts
from worker.engine.pages import PagePool
from worker.engine.plan import Plan
from worker.engine.prefix import PrefixKeys
from worker.engine.sequence import Sequence, State
from worker.engine.speculation import Speculation

_RANK, _PRIORITY = attrgetter("rank"), attrgetter("priority")


class Scheduler:
    """Owns the queue of waiting sequences, the running ones, the free rows and the pages."""

    def __init__(
        self,
        config: EngineConfig,
        pool: PagePool,
        counts: SchedulerCounts | None = None,
        speculation: Speculation | None = None,
        device: str = "cpu",
    ) -> None:
        """counts: where to count; its own by default. speculation: None: no drafts. device: what computes the steps."""
        self.pool = pool
        self.running: list[Sequence] = []  # by rank
        self._waiting: list[tuple[tuple[int, int], Sequence]] = []  # a heap by rank
        self._num_ended = 0  # of them, cancelled while they waited
        self._free_rows = list(range(config.max_rows - 1, -1, -1))
        self.budget = TokenBudget(config.tokens_a_step(device), config.step_time_s)
        self._max_rows = config.max_rows
        self._headroom = Headroom(int(config.watermark * pool.num_pages), config.headroom)
        self._keys = PrefixKeys(pool.page_size) if config.prefix_cache else None
        self.speculation = speculation
        self.counts = counts or SchedulerCounts()

    @property
    def num_waiting(self) -> int:
        """Sequences without a row."""
        return len(self._waiting) - self._num_ended

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence by its rank. It must fit the pool when alone: the engine has checked."""
        sequence.state = State.WAITING
        if self.speculation is not None and sequence.lookup is None:
            # penalties change with each token, so behind a draft they would have to be other ones
            sequence.wants_lookup = not sequence.params.penalises and self.speculation.wants_next()
        heapq.heappush(self._waiting, (sequence.rank, sequence))

    def finish(self, sequence: Sequence) -> None:
        """End a sequence, running or waiting; its row and pages are free at once."""
        if self.speculation is not None and sequence.lookup is not None:
            self.speculation.learn(sequence.lookup)
        if sequence.state is State.RUNNING:
            self._leave_row(sequence)
        waited = sequence.state is State.WAITING
        sequence.state = State.FINISHED
        if waited:
            self._drop_ended()

    def _drop_ended(self) -> None:
        """One more that waited has ended. They leave the heap in the front, or all at once where they are half of it.

        Taking each out at once would go through the whole line: 5 ms where 100,000 wait.
        """
        self._num_ended += 1
        if 2 * self._num_ended > len(self._waiting):
            self._waiting = [item for item in self._waiting if item[1].state is State.WAITING]
            heapq.heapify(self._waiting)
            self._num_ended = 0

    def plan(self) -> Plan:
        """The next step. Pages for its tokens are taken; `launched` follows once it is sure to be computed.

        It holds nothing if all that is left awaits tokens that are drawn but not read.
        """
        preempted: list[Sequence] = []
        admitted: list[Sequence] = []
        self._make_way(preempted)
        made_way = len(preempted)
        decoding, grown, prompts = self._parted()
        budget = self.budget.next(len(decoding))  # never fewer than decode
        tokens = self._decode(decoding, grown, preempted)
        budget -= len(tokens)
        for sequence in prompts:
            if sequence.state is not State.RUNNING:
                continue
            if len(preempted) == made_way:  # those who outrank it come first
                budget -= self._admit(tokens, budget, admitted, before=sequence.rank)
            if budget == 0:
                break
            count = min(sequence.remaining, budget)
            if self._grow(sequence, count, preempted):
                tokens[sequence] = count
                budget -= count
                grown.append(sequence)
            for victim in preempted:
                budget += tokens.pop(victim, 0)
        ran_out = len(preempted) > made_way
        if not ran_out:
            budget -= self._admit(tokens, budget, admitted)
        self._headroom.step(preempted=ran_out)
        admitted = [sequence for sequence in admitted if sequence.state is State.RUNNING]
        drafts = self._draft(tokens, budget)
        grown = [sequence for sequence in (*grown, *drafts) if sequence in tokens]
        if not (prompts or admitted or drafts):
            return Plan(tokens, admitted, preempted, drafts, list(tokens), grown)
        tokens = dict(sorted(tokens.items(), key=lambda item: item[1] > 1))
        caught_up = [sequence for sequence, count in tokens.items() if count >= sequence.remaining]
        return Plan(tokens, admitted, preempted, drafts, caught_up, grown)

    def _parted(self) -> tuple[list[Sequence], list[Sequence], list[Sequence]]:
        """(those that decode, those of them whose pages are full, those in their prompt), of the running ones that a
        step can do anything for. One pass over all that run: this is what a plan costs where all decode."""
        decoding: list[Sequence] = []
        full: list[Sequence] = []
        prompts: list[Sequence] = []
        size = self.pool.page_size
        for s in self.running:  # as `remaining` and `awaits_its_end` have it: two properties take twice the time
            said, computed = len(s.output) + s.pending, s.computed
            if s.pending and said >= s.params.max_tokens:
                continue
            if len(s.prompt) + said - computed > 1:
                prompts.append(s)
                continue
            decoding.append(s)
            if computed >= len(s.pages) * size:
                full.append(s)
        return decoding, full, prompts

    def _decode(self, decoding: list[Sequence], full: list[Sequence], preempted: list[Sequence]) -> dict[Sequence, int]:
        """A token for each that decodes and isn't preempted for another's page; those whose pages are full get one."""
        tokens = dict.fromkeys(decoding, 1)
        for sequence in full:
            if sequence.state is State.RUNNING:
                self._grow(sequence, 1, preempted)
        for victim in preempted:
            tokens.pop(victim, None)
        return tokens

    def shed(self, plan: Plan) -> Sequence | None:
        """Memory ran out in the plan's step, which did not happen: the youngest of it makes way, and steps take fewer
        tokens from now on. Returns the sequence if it is the only one and steps can't become smaller: hopeless."""
        youngest = max(plan.tokens, key=lambda s: s.rank)
        smaller = self.budget.shrink(self._max_rows)
        if len(plan.tokens) > 1:
            self._preempt(youngest)
        elif not smaller:
            return youngest
        return None

    def launched(self, plan: Plan) -> list[tuple[Sequence, int]]:
        """The plan's tokens are computed, or will be before anything that is planned next: count all but drafts.

        Returns those who have full pages for the prefix cache, and how far each is computed: for `enter`, once known.
        """
        filled: list[tuple[Sequence, int]] = []
        drafts, size, caches = plan.drafts, self.pool.page_size, self._keys is not None
        for sequence, count in plan.tokens.items():
            if drafts and sequence in drafts:
                count -= len(drafts[sequence])
            computed = sequence.computed
            if computed < sequence.reached:
                self.counts.recomputed_tokens += min(sequence.reached - computed, count)
            sequence.computed = computed = computed + count
            if caches and computed // size > sequence.entered:
                filled.append((sequence, computed))
        return filled

    def enter(self, sequence: Sequence, computed: int) -> None:
        """A running sequence's first `computed` tokens are computed and known: full pages enter the prefix cache."""
        full = computed // self.pool.page_size
        if self._keys is not None and sequence.entered < full:
            keys = self._keys.of(sequence, full)
            for at in range(sequence.entered, full):
                self.pool.enter(sequence.pages[at], keys[at])
            sequence.entered = full

    def drew(self, sequence: Sequence, taken: list[int]) -> None:
        """The step gave a sequence these tokens, its output's last: all but the last are drafts that held.

        The K/V of drafts that did not hold is written over by the tokens that come in their place.
        """
        if len(taken) > 1:
            sequence.computed += len(taken) - 1
            self.enter(sequence, sequence.computed)
            self.counts.accepted_tokens += len(taken) - 1
        if self.speculation is None or not sequence.wants_lookup:
            return
        if sequence.lookup is None:
            sequence.lookup = self.speculation.look_up([*sequence.prompt, *sequence.output])
            return
        for token in taken:
            sequence.lookup.saw(token)

    def took(self, plan: Plan, seconds: float) -> None:
        """The step of `plan` took so long: what the next may hold follows from that."""
        tokens, drafts = plan.num_tokens, sum(map(len, plan.drafts.values()))
        decodes = plan.num_decode + len(plan.drafts) + drafts
        self.budget.took(tokens, decodes, seconds)
        if self.speculation is not None and decodes == tokens:
            self.speculation.cost.took(tokens, seconds)

    def _grow(self, sequence: Sequence, count: int, preempted: list[Sequence]) -> bool:
        """Give `sequence` pages for `count` more tokens, taking them from lesser ones; False if it had to go itself."""
        missing = self._missing(sequence, count)
        while missing > self.pool.num_free:
            victim = self.running[-1]
            self._preempt(victim)
            preempted.append(victim)
            if victim is sequence:
                return False
        if missing > 0:
            sequence.pages += self.pool.take(missing)
        return True

    def _make_way(self, preempted: list[Sequence]) -> None:
        """Preempt sequences of a lower priority for the first in line, where that gives it the row or pages it lacks.

        Only priority counts here, not who came first: among equals nobody makes way.
        """
        while (first := self._first()) is not None:
            lesser = self.running[bisect_right(self.running, first.priority, key=_PRIORITY) :]
            if not lesser or (self._free_rows and self._fits(first)):
                return
            could_be_free = self.pool.num_free + sum(len(s.pages) for s in lesser)
            if self.pool.pages_for(first.num_tokens) > could_be_free:
                return
            victim = lesser[-1]
            self._preempt(victim)
            preempted.append(victim)

    def _preempt(self, sequence: Sequence) -> None:
        """Free its row and pages but keep its tokens: they are computed again when it is admitted again."""
        self._leave_row(sequence)
        sequence.reached, sequence.computed = max(sequence.reached, sequence.computed), 0
        sequence.pending = 0  # drawn again, from the same noise
        self.counts.preemptions += 1
        self.add(sequence)

    def _admit(
        self, tokens: dict[Sequence, int], budget: int, admitted: list[Sequence], before: tuple[int, int] | None = None
    ) -> int:
        """Give rows to waiting sequences, by rank, while rows, pages and budget last; all pages of the prompt at once.

        None is passed over: a long one at the head waits for room and is not starved by short ones behind it.
        before: only those who outrank this. Returns what it took of the budget.
        """
        left = budget
        while self._free_rows and left > 0:
            sequence = self._first()
            if sequence is None or (before is not None and sequence.rank > before) or not self._fits(sequence):
                break
            heapq.heappop(self._waiting)
            self._seat(sequence)
            admitted.append(sequence)
            tokens[sequence] = min(sequence.remaining, left)
            left -= tokens[sequence]
        return budget - left

    def _first(self) -> Sequence | None:
        """The first in line."""
        while self._waiting and self._waiting[0][1].state is not State.WAITING:
            heapq.heappop(self._waiting)
            self._num_ended -= 1
        return self._waiting[0][1] if self._waiting else None

    def _draft(self, tokens: dict[Sequence, int], budget: int) -> dict[Sequence, list[int]]:
        """Add guesses to sequences that decode, where they pay, while budget and pages last.

        Nobody makes way for a guess: it takes no page that a running sequence could need in the next step.
        """
        drafts: dict[Sequence, list[int]] = {}
        if self.speculation is None:
            return drafts
        bar, gains = self.speculation.cost.bar(len(tokens)), 0.0
        spare = max(0, self.pool.num_free - len(self.running))
        for sequence in tokens:
            lookup = sequence.lookup
            if lookup is None or lookup.chance <= bar or sequence.remaining > 1:
                continue
            room = (len(sequence.pages) + spare) * self.pool.page_size - sequence.num_tokens
            left = sequence.params.max_tokens - len(sequence.output) - 1
            found, gain = lookup.drafts(min(self.speculation.max_drafts, budget, room, left), bar)
            if found:
                drafts[sequence], gains, budget = found, gains + gain, budget - len(found)
                spare -= max(0, self._missing(sequence, 1 + len(found)))
        if not self.speculation.pays(gains, len(tokens)):
            return {}
        for sequence, found in drafts.items():
            tokens[sequence] += len(found)
            sequence.pages += self.pool.take(max(0, self._missing(sequence, 1 + len(found))))
            self.counts.drafted_tokens += len(found)
        return drafts

    def _missing(self, sequence: Sequence, count: int) -> int:
        """Pages it lacks for `count` more tokens; less than none where it has more than it needs."""
        return self.pool.pages_for(sequence.computed + count) - len(sequence.pages)

    def _fits(self, sequence: Sequence) -> bool:
        """Whether there are pages for it, and head-room beside: none for the only sequence there is."""
        cached = self._cached_pages(sequence)
        needed = self.pool.pages_for(sequence.num_tokens) - len(cached) + self.pool.num_idle(cached)
        if not self.running or needed > self.pool.num_free:
            return needed <= self.pool.num_free
        growth = self._growth((*self.running, sequence))
        return needed + self._headroom.pages(growth) <= self.pool.num_free

    def _growth(self, sequences: Iterable[Sequence]) -> int:
        """Pages these could still need beyond those of their tokens and those they have. In one loop: while the first
        in line waits for pages, each plan asks this of all that run."""
        size, growth = self.pool.page_size, 0
        for s in sequences:
            prompt, pages = len(s.prompt), len(s.pages)
            tokens = prompt + len(s.output) + s.pending
            if tokens > pages * size:
                pages = -(-tokens // size)
            growth += -(-(prompt + s.params.max_tokens) // size) - pages
        return growth

    def _cached_pages(self, sequence: Sequence) -> list[int]:
        """Pages of the prefix cache that hold its first tokens; never the last token, whose logits are wanted."""
        if self._keys is None:
            return []
        full = (sequence.num_tokens - 1) // self.pool.page_size
        return self.pool.find(self._keys.of(sequence, full)[:full])

    def _seat(self, sequence: Sequence) -> None:
        """Give it a row, the cached pages of its beginning, and new ones for the rest. It fits."""
        cached = self._cached_pages(sequence)
        self.pool.hold(cached)
        sequence.pages = cached + self.pool.take(self.pool.pages_for(sequence.num_tokens) - len(cached))
        sequence.entered = len(cached)
        sequence.computed = tokens = len(cached) * self.pool.page_size
        if sequence.cached is None:
            sequence.cached = min(tokens, len(sequence.prompt))
        self.counts.admitted_tokens += sequence.num_tokens - 1
        self.counts.cached_tokens += tokens
        sequence.row = self._free_rows.pop()
        sequence.state = State.RUNNING
        insort(self.running, sequence, key=_RANK)

    def _leave_row(self, sequence: Sequence) -> None:
        assert sequence.row is not None
        self.running.remove(sequence)
        self._free_rows.append(sequence.row)
        self.pool.release(reversed(sequence.pages))
        sequence.row, sequence.pages = None, []

    def check(self) -> None:
        """Assert that rows and pages add up. Cheap enough for every step of a test and for an idle worker."""
        self.pool.check(s.pages for s in self.running)
        rows = [s.row for s in self.running if s.row is not None]
        assert sorted([*rows, *self._free_rows]) == list(range(self._max_rows)), "a row is lost or held twice"
        for sequence in self.running:
            assert sequence.state is State.RUNNING
            assert sequence.computed <= len(sequence.pages) * self.pool.page_size, "tokens computed without a page"
            assert sequence.entered * self.pool.page_size <= sequence.computed, "a page in the cache is not computed"
        waiting = [sequence for _, sequence in self._waiting if sequence.state is State.WAITING]
        assert len(waiting) == self.num_waiting, "the line is counted wrongly"
        assert self.running == sorted(self.running, key=_RANK), "those who run are not by rank"
        for sequence in waiting:
            assert sequence.row is None
            assert not sequence.pages
            assert sequence.computed == 0
