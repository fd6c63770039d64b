"""Dead letters: jobs that nobody answers any more, kept whole until someone has looked at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from producer import wire
from producer.calls.script import Call, script
from producer.calls.submit import Happening, read_history
from producer.keys import Keys
from producer.protocol import Job


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that was given up, as it was enqueued, with all that happened to it."""

    entry: str
    """Its id in `T:dead`, `<Unix ms>-<n>`."""
    job_id: str
    why: str
    """In a word: strikes, deliveries, broken."""
    payload: bytes
    history: tuple[Happening, ...]

    @property
    def died_at(self) -> float:
        """Unix seconds, by Redis' clock."""
        return int(self.entry.partition("-")[0]) / 1000

    def job_anew(self) -> Job:
        """The job to submit instead: the same content under an id that follows from the old one, no deadline.

        So requeueing twice is one job. Raises Undecodable where the payload is no job.
        """
        job = wire.decode_job(self.payload, self.job_id)
        head, _, random_part = self.job_id.rpartition(".")
        stem, _, times = random_part.partition("-again-")
        again = f"{stem[:52]}-again-{int(times or 0) + 1}"
        update = {"id": f"{head}.{again}", "requeued_from": self.job_id}
        return job.model_copy(update={**update, "deadline": None, "not_before": None, "idempotency_key": None})


def read_letters(entries: list[tuple[bytes, Mapping[bytes, bytes]]]) -> list[DeadLetter]:
    """Entries of `T:dead`, as XRANGE gives them."""
    return [
        DeadLetter(
            entry.decode(),
            fields.get(b"j", b"").decode(errors="replace"),
            fields.get(b"r", b"").decode(errors="replace"),
            fields.get(b"p", b""),
            read_history(fields.get(b"h", b"")),
        )
        for entry, fields in entries
    ]


def settle(keys: Keys, letter: DeadLetter, requeued_as: str = "") -> Call[bool]:
    """Take a letter away, after its job was submitted anew (`requeued_as`) or to forget it. False: it was gone."""

    def parse(answer: Any) -> bool:
        return bool(answer)

    return Call(script("requeued"), keys.about(letter.job_id), (letter.entry, requeued_as), parse)
