"""The answers of an undisturbed run: the same jobs through one engine, offline, in deterministic mode.

As a program (`python -m ops.chaos.reference --seed 1 --jobs 150 --producers 4 --model DIR`) it writes them to stdout:
{job id: [token ids, text, reason]}. It is one so that the run itself loads no torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.chaos.plan import plan
from producer.protocol import Job


@dataclass(frozen=True)
class Answer:
    """A job's whole answer when nothing happens."""

    token_ids: tuple[int, ...]
    text: str
    reason: str


def read(written: str) -> dict[str, Answer]:
    """What the program wrote."""
    return {job_id: Answer(tuple(ids), text, reason) for job_id, (ids, text, reason) in json.loads(written).items()}


def undisturbed(jobs: Sequence[Job], model: str) -> Mapping[str, Answer]:
    """Each job's answer, by its id."""
    from worker.engine import Engine, SequenceParams
    from worker.jobs import decide
    from worker.text import TextModel

    engine = Engine.from_pretrained(model, deterministic=True)
    text = TextModel.from_pretrained(model)
    resolved = [decide(job, text, Path(model).name, engine.max_len) for job in jobs]
    completions = engine.generate([r.prompt_ids for r in resolved], [SequenceParams(**r.params) for r in resolved])
    answers = {}
    for job, asked, completion in zip(jobs, resolved, completions, strict=True):
        stream = text.stream(asked.prompt_ids, asked.stop, asked.min_tokens)
        pieces = [stream.push(completion.token_ids), stream.finish()]
        ids = tuple(token for piece in pieces for token in piece.token_ids)
        reason = "stop" if stream.stopped else str(completion.finish_reason)
        answers[job.id] = Answer(ids, "".join(piece.text for piece in pieces), reason)
    return answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("seed", "jobs", "producers"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--model", required=True)
    given = parser.parse_args()
    jobs = [planned.job for planned in plan(given.seed, given.jobs, given.producers)]
    answers = undisturbed(jobs, given.model)
    json.dump({job_id: [a.token_ids, a.text, a.reason] for job_id, a in answers.items()}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
