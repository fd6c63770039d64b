"""A reader's place in the events, over failovers that lose the stream's tail: told anew where it must be.

A failover is a DUMP of every key, put back later. The readers here are cursors, fed with what XREAD would give them.
"""

import random

import pytest

from producer import wire
from producer.cursor import EventCursor
from producer.errors import Undecodable
from producer.protocol import running_hash


class Reader:
    """A cursor, and what somebody who does as its events say ends up with."""

    def __init__(self, desk, job_id, from_offset=0, from_hash=None, has=()):
        self.desk, self.job_id = desk, job_id
        self.cursor = EventCursor(from_offset, from_hash)
        self.tokens, self.resyncs, self.end = list(has), [], None

    def read(self):
        """Read to the end of the stream as it is now. Returns the kinds of the events told."""
        told, key = [], self.desk.keys.tokens(self.job_id)
        while entries := self.desk.redis.xrange(key, min=f"({self.cursor.last_entry}"):
            told += self.cursor.events(entries)
        return self.take(told)

    def look(self):
        """As after some seconds of silence."""
        self.cursor.rewind_if_lost(self.desk.status(self.job_id))
        return self.read()

    def take(self, events):
        for event in events:
            if event.kind == "tokens":
                assert event.start == len(self.tokens), "a gap or a repeat"
                self.tokens += event.token_ids
                if self.tokens[0] is not None:
                    assert running_hash(0, self.tokens) == event.hash, "a wrong splice"
            elif event.kind == "resync":
                assert event.offset < len(self.tokens), "nothing to drop"
                self.resyncs.append(event.offset)
                del self.tokens[event.offset :]
            elif event.kind == "ended":
                self.end = (event.reason, event.offset)
                assert event.offset == len(self.tokens)
        return [event.kind for event in events]


@pytest.fixture
def replica(desk):
    """`replica()` is how all keys stand now."""
    return lambda: {key: desk.redis.dump(key) for key in desk.redis.keys("*")}


@pytest.fixture
def fail_over(desk):
    """`fail_over(replica)` puts all keys back to how they stood then."""

    def put_back(replica):
        desk.redis.flushall()
        for key, value in replica.items():
            desk.redis.restore(key, 0, value)

    return put_back


def test_lost_tokens_that_come_again_are_not_told_again(desk, replica, fail_over):
    """The owner fills the gap from memory in other pieces; the reader goes on where it was."""
    job_id = desk.submit()
    claim, reader = desk.take("a"), Reader(desk, job_id)
    desk.publish(claim, "a", 0, [1, 2])
    before = replica()
    desk.publish(claim, "a", 2, [3, 4])
    reader.read()
    fail_over(before)
    desk.publish(claim, "a", 2, [3, 4, 5])
    assert reader.read() == ["tokens"]
    desk.finish(claim, "a", 5, [6])
    reader.read()
    assert (reader.tokens, reader.resyncs, reader.end) == ([1, 2, 3, 4, 5, 6], [], ("stop", 6))


def test_other_tokens_in_place_of_lost_ones_are_told_anew(desk, replica, fail_over):
    """A new owner draws others from where the failover left the stream: Resync names the first that differs."""
    job_id = desk.submit()
    old, reader = desk.take("a"), Reader(desk, job_id)
    desk.publish(old, "a", 0, [1, 2])
    before = replica()
    desk.publish(old, "a", 2, [3, 4, 5])
    reader.read()
    fail_over(before)
    new = desk.take_over("b")
    desk.publish(new, "b", 2, [3, 9])
    assert reader.read() == ["resync", "tokens"], "told as soon as it is known, not when the old place is reached"
    assert (reader.tokens, reader.resyncs) == ([1, 2, 3, 9], [3])
    desk.finish(new, "b", 4, [8])
    reader.read()
    assert (reader.tokens, reader.resyncs, reader.end) == ([1, 2, 3, 9, 8], [3], ("stop", 5))


def test_tokens_under_lower_ids_than_were_read_are_found(desk, replica, fail_over):
    """The failover loses a takeover too, and the first owner goes on under ids that XREAD passes over."""
    job_id = desk.submit()
    old, reader = desk.take("a"), Reader(desk, job_id)
    desk.publish(old, "a", 0, [1, 2])
    before = replica()
    new = desk.take_over("b")
    desk.publish(new, "b", 2, [3, 4])
    reader.read()
    fail_over(before)
    desk.publish(old, "a", 2, [7, 8])
    assert reader.read() == [], "nothing is above the id that was read last"
    assert reader.look() == ["resync", "tokens"]
    assert (reader.tokens, reader.resyncs) == ([1, 2, 7, 8], [2])


def test_an_end_after_tokens_that_were_passed_over_is_not_believed_alone(desk, replica, fail_over):
    """An end at the very offset where the reader is, over other tokens than it has: the stream is read once more."""
    job_id = desk.submit()
    old, reader = desk.take("a"), Reader(desk, job_id)
    desk.publish(old, "a", 0, [1, 2])
    before = replica()
    new = desk.take_over("b")
    desk.publish(new, "b", 2, [3, 4])
    reader.read()
    fail_over(before)
    desk.publish(old, "a", 2, [7, 8])
    last = desk.take_over("c")
    desk.finish(last, "c", 4)
    reader.read()
    assert (reader.tokens, reader.resyncs, reader.end) == ([1, 2, 7, 8], [2], ("stop", 4))


@pytest.mark.parametrize("tokens", [[1, 2], []])
def test_an_end_below_the_readers_place_drops_what_is_above(desk, replica, fail_over, tokens):
    """The job ends with fewer tokens than the reader has: these are the answer, and the reader is told so."""
    job_id = desk.submit()
    old, reader = desk.take("a"), Reader(desk, job_id)
    if tokens:
        desk.publish(old, "a", 0, tokens)
    before = replica()
    desk.publish(old, "a", len(tokens), [3, 4])
    reader.read()
    fail_over(before)
    desk.finish(desk.take_over("b"), "b", len(tokens))
    assert reader.read()[-2:] == ["resync", "ended"]
    assert (reader.tokens, reader.resyncs, reader.end) == (tokens, [len(tokens)], ("stop", len(tokens)))


@pytest.mark.parametrize("same", [True, False])
def test_a_stream_that_was_deleted_and_made_again_is_compared(desk, same):
    """A later owner tells everything from the first token, under a new epoch."""
    job_id = desk.submit()
    reader = Reader(desk, job_id)
    desk.publish(desk.take("a"), "a", 0, [1, 2, 3])
    reader.read()
    desk.redis.delete(desk.keys.tokens(job_id))
    assert reader.look() == []
    desk.finish(desk.take_over("b"), "b", 0, [1, 2, 3, 4] if same else [1, 5])
    reader.read()
    assert reader.resyncs == ([] if same else [1])
    assert reader.tokens == ([1, 2, 3, 4] if same else [1, 5])


@pytest.mark.parametrize("same", [True, False])
def test_tokens_brought_along_are_checked_by_their_hash(desk, same):
    """Who begins at an offset and gives the hash of its last event learns where it has other tokens than the job."""
    job_id = desk.submit()
    desk.finish(desk.take("a"), "a", 0, [1, 2, 3, 4])
    has = [1, 2] if same else [1, 9]
    reader = Reader(desk, job_id, from_offset=2, from_hash=running_hash(0, has), has=has)
    reader.read()
    assert (reader.tokens, reader.resyncs) == ([1, 2, 3, 4], [] if same else [0])


def test_what_a_reader_brings_without_a_hash_is_taken_as_it_is(desk):
    """Without a hash nobody can know what the reader has; from there on it is told what there is."""
    job_id = desk.submit()
    desk.finish(desk.take("a"), "a", 0, [1, 2, 3, 4])
    reader = Reader(desk, job_id, from_offset=2, has=[None, None])
    reader.read()
    assert (reader.tokens, reader.resyncs) == ([None, None, 3, 4], [])


def test_a_reader_that_began_in_the_midst_is_told_of_a_change_before_it(desk, replica, fail_over):
    """Also what lay before its offset is compared with what is read later."""
    job_id = desk.submit()
    old = desk.take("a")
    desk.publish(old, "a", 0, [1])
    before = replica()
    desk.publish(old, "a", 1, [2, 3, 4])
    reader = Reader(desk, job_id, from_offset=3, has=[1, 2, 3])
    assert reader.read() == ["tokens"]
    fail_over(before)
    desk.finish(desk.take_over("b"), "b", 1, [7])
    reader.read()
    assert (reader.tokens, reader.resyncs) == ([1, 7], [1])


def test_who_has_more_tokens_than_the_job_is_told_everything(desk):
    """An offset beyond the end can't be right: the failover that took it back may have taken any token."""
    job_id = desk.submit()
    desk.finish(desk.take("a"), "a", 0, [1, 2, 3])
    reader = Reader(desk, job_id, from_offset=5, has=[1, 2, 9, 9, 9])
    reader.read()
    assert (reader.tokens, reader.resyncs, reader.end) == ([1, 2, 3], [0], ("stop", 3))


def test_a_start_is_told_once(desk):
    """Reading the stream once more tells no start a second time."""
    job_id = desk.submit()
    claim, reader = desk.take("a"), Reader(desk, job_id)
    desk.publish(claim, "a", 0, [1])
    told = reader.read()
    new = desk.take_over("b")
    told += reader.read()
    desk.finish(new, "b", 1)
    told += reader.read()
    assert told == ["started", "tokens", "started", "ended"]


def test_a_stream_that_contradicts_itself_is_an_error(desk):
    """Tokens whose hash does not follow from those before them: no reader can tell which are right."""
    job_id = desk.submit()
    claim, reader = desk.take("a"), Reader(desk, job_id)
    desk.publish(claim, "a", 0, [1])
    desk.redis.xadd(desk.keys.tokens(job_id), {"t": wire.encode_tokens([2], ["b"], 12345)}, id=f"{claim.epoch}-2")
    with pytest.raises(Undecodable, match="tokens from 1 to 2 do not follow"):
        reader.read()


class Stream:
    """A job's events in memory, as its owners write them, for many random failovers in little time."""

    def __init__(self, chance):
        self.chance = chance
        self.now = chance.choice([0, 1000])  # a clock that stands makes a number come twice after a failover
        self.entries, self.tokens, self.epoch = [], [], 0
        self.copies = []
        self.ended = False

    def write(self, epoch, kind, blob):
        entry = (epoch, len(self.tokens))
        if not self.entries or entry > self.entries[-1][0]:
            self.entries.append((entry, {kind: blob}))

    def claim(self):
        self.epoch = max(self.epoch + 1, self.now)
        self.write(self.epoch, b"s", wire.encode_started("a"))

    def publish(self):
        new = [self.chance.randrange(3) for _ in range(self.chance.randint(1, 4))]
        self.tokens += new
        self.write(self.epoch, b"t", wire.encode_tokens(new, [""] * len(new), running_hash(0, self.tokens)))

    def end(self):
        self.write(self.epoch + 1, b"e", wire.encode_ended("stop"))
        self.ended = True

    def copy(self):
        self.copies.append((list(self.entries), list(self.tokens), self.epoch))

    def fail_over(self):
        if self.copies:
            entries, tokens, self.epoch = self.chance.choice(self.copies)
            self.entries, self.tokens = list(entries), list(tokens)

    # What a reader needs of a desk and a status.

    def after(self, last_entry):
        last = tuple(int(part) for part in last_entry.split("-"))
        return [(f"{epoch}-{at}".encode(), fields) for (epoch, at), fields in self.entries if (epoch, at) > last]

    @property
    def last_event(self):
        return "{}-{}".format(*self.entries[-1][0]) if self.entries else None


@pytest.mark.parametrize("first", range(0, 3000, 500))
def test_whatever_is_lost_the_reader_ends_with_what_the_job_has(first):
    """Random takeovers, failovers and other tokens: no wrong splice on the way, and all right at the end."""
    for seed in range(first, first + 500):
        chance = random.Random(seed)
        stream = Stream(chance)
        reader = Reader(None, "job")
        stream.claim()
        for _ in range(chance.randint(3, 25)):
            stream.now += chance.choice([0, 0, 1, 5]) if stream.now else 0
            act = chance.choice([stream.claim, stream.publish, stream.publish, stream.copy, stream.fail_over])
            act()
            if chance.random() < 0.5:
                some = stream.after(reader.cursor.last_entry)
                reader.take(reader.cursor.events(some[: chance.randint(1, 4)]))
            if chance.random() < 0.1:
                reader.cursor.rewind_if_lost(stream)
        if chance.random() < 0.5:
            stream.claim()
        stream.end()
        for _ in range(4):
            while entries := stream.after(reader.cursor.last_entry):
                reader.take(reader.cursor.events(entries[:3]))
                if reader.end:
                    break
            if reader.end:
                break
            reader.cursor.rewind_if_lost(stream)
        assert reader.end == ("stop", len(stream.tokens)), f"seed {seed}"
        assert reader.tokens == stream.tokens, f"seed {seed}"
