"""The page pool: pages that are held, idle in the prefix cache, or empty; and the keys that they are found by."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.engine.pages import PagePool
from worker.engine.prefix import PrefixKeys
from worker.engine.sequence import Sequence, SequenceParams

PAGE = 16


@pytest.mark.parametrize("pages", [[3], [0, 3, 1]])
def test_released_pages_can_be_taken_again(pages: list[int]):
    """A page is free once its last holder let go of it, and only then."""
    pool = PagePool(4, PAGE)
    taken = pool.take(4)
    assert sorted(taken) == [0, 1, 2, 3]
    pool.hold(pages)
    pool.release(taken)
    pool.check([pages])
    assert pool.num_free == 4 - len(pages)
    pool.release(pages)
    pool.check([])
    assert pool.num_free == 4


def test_a_cached_page_is_found_until_its_memory_is_needed():
    """While it is held, after it was let go, and not any more once another has taken it."""
    pool = PagePool(2, PAGE)
    (page,) = pool.take(1)
    pool.enter(page, b"a")
    assert pool.find([b"a"]) == [page]
    pool.release([page])
    pool.check([])
    assert pool.num_free == 2
    assert pool.find([b"a"]) == [page]
    (other,) = pool.take(1)
    assert other != page  # the empty one went first
    assert pool.find([b"a"]) == [page]
    assert pool.take(1) == [page]
    assert pool.find([b"a"]) == []
    pool.check([[other], [page]])


def test_the_page_that_has_been_idle_for_longest_goes_first():
    """In the order in which they were let go; holding one again puts it at the end of the line."""
    pool = PagePool(3, PAGE)
    pages = pool.take(3)
    for page, key in zip(pages, (b"a", b"b", b"c"), strict=True):
        pool.enter(page, key)
    pool.release(pages)
    pool.hold(pages[:1])
    pool.release(pages[:1])
    assert pool.take(2) == pages[1:]
    assert pool.find([b"a"]) == pages[:1]


def test_a_run_of_pages_is_found_up_to_the_first_that_is_gone():
    """What lies behind a gap is of no use: its keys stand on it."""
    pool = PagePool(3, PAGE)
    pages = pool.take(3)
    for page, key in zip(pages, (b"a", b"b", b"c"), strict=True):
        pool.enter(page, key)
    pool.release([pages[1]])
    pool.take(1)
    assert pool.find([b"a", b"b", b"c"]) == pages[:1]


def test_of_two_pages_with_one_content_the_first_stays_in_the_cache():
    """The second is empty once it is let go."""
    pool = PagePool(2, PAGE)
    first, second = pool.take(2)
    pool.enter(first, b"a")
    pool.enter(second, b"a")
    pool.release([second])
    pool.check([[first]])
    assert pool.find([b"a"]) == [first]
    assert pool.take(1) == [second]


def test_the_pool_notices_what_does_not_add_up():
    """A page released twice, held while empty, taken beyond the last, cached while free, or held by nobody we know."""
    pool = PagePool(2, PAGE)
    (page,) = pool.take(1)
    with pytest.raises(AssertionError, match="0 holders, 1 counted"):
        pool.check([])
    with pytest.raises(AssertionError, match="2 pages asked for, 1 free"):
        pool.take(2)
    pool.release([page])
    with pytest.raises(AssertionError, match="released twice"):
        pool.release([page])
    with pytest.raises(AssertionError, match="is empty and can't be held"):
        pool.hold([page])
    with pytest.raises(AssertionError, match="has no holder"):
        pool.enter(page, b"a")
    with pytest.raises(AssertionError, match="1 holders, 0 counted"):
        pool.check([[page]])


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (16, 1), (17, 2), (160, 10)])
def test_tokens_are_held_by_as_many_pages_as_they_begin(tokens: int, pages: int):
    """Rounded up."""
    assert PagePool(1, PAGE).pages_for(tokens) == pages


class PoolMachine(RuleBasedStateMachine):
    """Holders that take, hold, cache and release pages in any order; a model of what each cached page contains.

    What a page contains is written when it is taken, as a sequence writes K/V, so a page that was handed out while
    somebody could still read it shows.
    """

    SIZE = 6

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(self.SIZE, PAGE)
        self.holders: list[list[int]] = []
        self.content: dict[int, bytes] = {}
        self.writes = 0

    @rule(count=st.integers(0, SIZE))
    def take(self, count: int) -> None:
        if count > self.pool.num_free:
            return
        held = {page for pages in self.holders for page in pages}
        taken = self.pool.take(count)
        assert not held & set(taken)
        for page in taken:
            self.writes += 1
            self.content[page] = b"%d" % (self.writes % 9)  # contents come again
        self.holders.append(taken)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.holders) - 1))
        self.pool.release(reversed(self.holders.pop(at)))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def enter(self, data: st.DataObject) -> None:
        for page in data.draw(st.sampled_from(self.holders)):
            if page not in self.pool._key_of:
                self.pool.enter(page, self.content[page])

    @rule(keys=st.lists(st.integers(0, 8).map(lambda n: b"%d" % n), max_size=4))
    def find_and_hold(self, keys: list[bytes]) -> None:
        found = self.pool.find(keys)
        assert [self.content[page] for page in found] == keys[: len(found)]
        free, idle = self.pool.num_free, self.pool.num_idle(set(found))
        self.pool.hold(found)
        assert self.pool.num_free == free - idle
        self.holders.append(found)

    @rule()
    def forget(self) -> None:
        self.pool.forget()
        assert self.pool.num_cached == 0

    @invariant()
    def adds_up(self) -> None:
        self.pool.check(self.holders)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, database=None)


def sequence(prompt: list[int], output: list[int] | None = None) -> Sequence:
    return Sequence(0, prompt, SequenceParams(9), 0, 0, output or [])


def test_a_key_stands_for_all_tokens_up_to_its_pages_end():
    """Alike as long as the tokens are; different from the first page that differs on, though later pages are alike."""
    keys = PrefixKeys(PAGE)
    tokens = list(range(4 * PAGE))
    other = [*tokens[:PAGE], 999, *tokens[PAGE + 1 :]]
    one, same, two = (keys.of(sequence(t), 4) for t in (tokens, list(tokens), other))
    assert one == same
    assert [a == b for a, b in zip(one, two, strict=True)] == [True, False, False, False]
    assert len({*one, *two}) == 7


def test_where_a_prompt_ends_and_output_begins_makes_no_difference_to_keys():
    """A sequence taken over is found under the keys of the one that wrote it."""
    keys, tokens = PrefixKeys(PAGE), list(range(3 * PAGE))
    whole = keys.of(sequence(tokens), 3)
    for at in (1, PAGE - 1, PAGE, PAGE + 5, 3 * PAGE - 1):
        assert keys.of(sequence(tokens[:at], tokens[at:]), 3) == whole


def test_another_process_has_other_keys():
    """The hash is keyed: a prompt made to meet another's key is worth nothing."""
    tokens = list(range(PAGE))
    assert PrefixKeys(PAGE).of(sequence(tokens), 1) != PrefixKeys(PAGE).of(sequence(tokens), 1)
