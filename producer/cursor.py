"""A reader's place in a job's events: from the entries of its stream to events that continue where the reader is.

In: entries as XREAD gives them. Out: events, each token once and in order; or `Resync`, where the stream now says other
tokens than the reader has. Knows neither Redis nor time; what to read next is `last_entry`.

How it can tell: every tokens event carries the hash of all tokens so far, so each one proves, or disproves, that the
whole stream before it is what we have read. After a failover that lost the stream's tail there are three ways on:

- The owner sends the lost tokens again, perhaps in other pieces: the hashes agree, nothing is told twice.
- Another owner goes on from what was left, and draws other tokens: `Resync` names the first that differs, and the
  stream is told anew from there. The same where the job now ends before the reader's place.
- What came since has lower ids than we have read, so that XREAD passes over it. A later event then does not fit, or the
  reader looks at the job (`rewind_if_lost`): the stream is read once more from its first entry, and compared.

What can't be known: a reader that begins at an offset has tokens which this cursor has never seen. If it also gives the
`hash` of its last tokens event, they are checked; else they are taken to be what the stream says when it is read.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

from producer import calls, wire
from producer.errors import Undecodable
from producer.protocol import Ended, Event, Resync, Started, Tokens, running_hash

Entry = tuple[bytes, Mapping[bytes, bytes]]

START = "0-0"
"""Reading after this entry is reading from the first."""


class Place:
    """A place in a job's events: what was read last, and whether that was the end."""

    def __init__(self) -> None:
        self.last_entry = START
        self.ended = False

    def rewind_if_lost(self, status: calls.JobStatus) -> None:
        """Compare our place with where the stream ends now; read it anew if it ends before, or was ended unseen."""
        last, ours = order(status.last_event or START), order(self.last_entry)
        if last < ours or (status.ended and last == ours):
            self._rewind()

    def _rewind(self) -> None:
        self.last_entry = START


class EndCursor(Place):
    """The place of one who waits for the end alone, and looks into no event."""

    def events(self, entries: Iterable[Entry]) -> list[Event]:
        """Notes the end, tells nothing."""
        for entry, fields in entries:
            self.last_entry = entry.decode()
            self.ended = self.ended or b"e" in fields
        return []


class EventCursor(Place):
    """One reader's place. `from_hash` is the `hash` of the event that brought it to `from_offset`, if it has that.

    Costs eight bytes of memory a token.
    """

    def __init__(self, from_offset: int = 0, from_hash: int | None = None) -> None:
        super().__init__()
        self.offset = from_offset
        """Tokens that the reader has."""
        self._hashes = array("Q", [0])  # of the first 0, 1, 2, ... tokens, as we have read them
        self._at = 0  # how far this reading of the stream has come, in tokens; behind `offset` while it is compared
        self._brought = None if from_hash is None else (from_offset, from_hash)
        self._started = START  # the start that was told last
        self._anew_for = ""  # the entry that did not fit, for which the stream was read from its first entry

    def events(self, entries: Iterable[Entry]) -> list[Event]:
        """What is new in `entries`, which follow `last_entry`. Raises Undecodable if the stream contradicts itself."""
        new: list[Event] = []
        proven = self.last_entry == START  # whether these very entries show that what lies before them is what we know
        for entry, fields in entries:
            event = wire.decode_event(entry, fields)
            self.last_entry = entry.decode()
            new += self._take(event, proven)
            if self.ended or self.last_entry == START:
                break
            proven = proven or isinstance(event, Tokens)
        return new

    def _take(self, event: Started | Tokens | Ended, proven: bool) -> list[Event]:
        begins = event.start if isinstance(event, Tokens) else event.offset
        if begins > self._at:
            return self._misfit(f"the tokens from {self._at} to {begins} are missing")
        self._at = begins
        match event:
            case Tokens():
                return self._continue(event)
            case Started():
                return self._start(event)
            case Ended():
                return self._end(event, proven)

    def _continue(self, event: Tokens) -> list[Event]:
        """Tokens that go on from what we know, or repeat it, or say otherwise."""
        start, hashes = event.start, [self._hashes[event.start]]
        for token in event.token_ids:
            hashes.append(running_hash(hashes[-1], (token,)))
        if hashes[-1] != event.hash:
            return self._misfit(f"the tokens from {start} to {event.offset} do not follow those before them")
        told = self._compare(start, hashes) if start < len(self._hashes) - 1 else []
        self._hashes.extend(hashes[len(self._hashes) - start :])
        self._at = event.offset
        if self._is_disproved():
            return self._told_from_the_start()
        if event.offset > self.offset:
            told.append(event if start == self.offset else event.since(self.offset))
            self.offset = event.offset
        return told

    def _compare(self, start: int, hashes: list[int]) -> list[Event]:
        """Tokens that we know already; a Resync from the first that is another now."""
        known = self._hashes[start : start + len(hashes)]
        differs = next((at for at, (new, old) in enumerate(zip(hashes, known, strict=False)) if new != old), None)
        return [] if differs is None else self._resync(start + differs - 1)

    def _start(self, event: Started) -> list[Event]:
        if event.offset != self.offset or order(self.last_entry) <= order(self._started):
            return []
        self._started = self.last_entry
        return [event]

    def _end(self, event: Ended, proven: bool) -> list[Event]:
        """It carries no hash: it is believed together with the tokens before it, or after all was read once more."""
        if event.offset and not proven and self._anew_for != self.last_entry:
            return self._misfit("an end")
        if len(self._hashes) <= self.offset:
            return self._told_from_the_start()  # the reader came with more tokens than the job has
        self.ended = True
        return [*self._resync(event.offset), event]

    def _resync(self, offset: int) -> list[Event]:
        """What the reader has from `offset` on is not so any more."""
        del self._hashes[offset + 1 :]
        if offset >= self.offset:
            return []
        self.offset = offset
        return [Resync(offset=offset)]

    def _is_disproved(self) -> bool:
        """Whether the tokens that the reader came with are not those of the stream."""
        if self._brought is None or self._brought[0] >= len(self._hashes):
            return False
        (offset, brought), self._brought = self._brought, None
        return self._hashes[offset] != brought

    def _told_from_the_start(self) -> list[Event]:
        self._brought = None
        self._rewind()
        return self._resync(0)

    def _misfit(self, why: str) -> list[Event]:
        """The entry just read does not fit what we know: read the stream from its first entry, once."""
        if self._anew_for == self.last_entry:
            raise Undecodable("event stream", f"{why}: someone deleted or wrote entries by hand; ask for the result")
        self._anew_for = self.last_entry
        self._rewind()
        return []

    def _rewind(self) -> None:
        super()._rewind()
        self._at = 0


def order(entry: str) -> tuple[int, int]:
    """What Redis sorts entries by."""
    epoch, offset = entry.split("-")
    return int(epoch), int(offset)
