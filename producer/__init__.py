"""What other services import to push generation jobs and read their tokens. No torch in here.

client.py      Producer and AsyncProducer: submit, stream, result, cancel, status
dead_letters.py  what operators do with jobs that nobody answers any more
cli.py         the command line, `slipstream`; cli_dead.py: `slipstream dead`; cli_setup.py: what its commands share
protocol.py    what lies in Redis (the table); Job, SamplingParams, events, Result
errors.py      everything that is raised, as one tree
keys.py        the names of keys and jobs
wire.py        jobs, events and results as bytes; logprobs.py: log-probabilities in them
submission.py  from what a caller says to the Job that is sent
cursor.py      a reader's place in a job's events
follow.py      following a job's events to their end, without sockets
followers.py   all readers of a partition over one connection, for AsyncProducer
questions.py   calls of many tasks in one round trip, for AsyncProducer
connection.py  connections to Redis, and its refusals in one sentence
calls/         the scripts as typed calls, for producers and workers alike
scripts/       the Lua scripts: each is one change of a job's state
"""

from producer.client import AsyncProducer, Producer
from producer.errors import (
    IdempotencyConflict,
    InvalidJob,
    JobCancelled,
    JobDead,
    JobEnded,
    JobExpired,
    JobFailed,
    JobUnknown,
    QueueFull,
    RedisUnavailable,
    ResultExpired,
    ResultTimeout,
    SlipstreamError,
)
from producer.protocol import Ended, Event, Job, Result, Resync, SamplingParams, Started, TokenLogprob, Tokens

__all__ = [
    "AsyncProducer",
    "Ended",
    "Event",
    "IdempotencyConflict",
    "InvalidJob",
    "Job",
    "JobCancelled",
    "JobDead",
    "JobEnded",
    "JobExpired",
    "JobFailed",
    "JobUnknown",
    "Producer",
    "QueueFull",
    "RedisUnavailable",
    "Result",
    "ResultExpired",
    "ResultTimeout",
    "Resync",
    "SamplingParams",
    "SlipstreamError",
    "Started",
    "TokenLogprob",
    "Tokens",
]
