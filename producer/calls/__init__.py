"""The scripts as typed calls, for producers and workers alike.

script.py    a script as a value; run, arun, run_many, arun_many
submit.py    enqueue, cancel, expire, status, depth
take.py      ensure_group, pull, reclaim, claim, alone, resolve, renew, hand_back, retry, discard
publish.py   publish, finish
house.py     due, promote, heal, refill, tidy, clock
dead.py      dead letters: read_letters, settle
wake.py      wake
presence.py  heartbeat, workers, wait_for_work, await_work
"""

from producer.calls.dead import DeadLetter, read_letters, settle
from producer.calls.house import Due, clock, due, heal, promote, refill, tidy
from producer.calls.presence import await_work, heartbeat, wait_for_work, workers
from producer.calls.publish import Publication, PublishReply, finish, publish
from producer.calls.script import Call, arun, arun_many, run, run_many
from producer.calls.submit import (
    CancelReply,
    Enqueued,
    Happening,
    JobStatus,
    LaneDepth,
    cancel,
    depth,
    enqueue,
    expire,
    read_history,
    status,
)
from producer.calls.take import (
    Claim,
    Delivery,
    Held,
    Pulled,
    ReclaimCursor,
    Reclaimed,
    Resolution,
    Retried,
    alone,
    claim,
    discard,
    ensure_group,
    hand_back,
    pull,
    reclaim,
    renew,
    resolve,
    retry,
)

__all__ = [
    "Call",
    "CancelReply",
    "Claim",
    "DeadLetter",
    "Delivery",
    "Due",
    "Enqueued",
    "Happening",
    "Held",
    "JobStatus",
    "LaneDepth",
    "Publication",
    "PublishReply",
    "Pulled",
    "ReclaimCursor",
    "Reclaimed",
    "Resolution",
    "Retried",
    "alone",
    "arun",
    "arun_many",
    "await_work",
    "cancel",
    "claim",
    "clock",
    "depth",
    "discard",
    "due",
    "enqueue",
    "ensure_group",
    "expire",
    "finish",
    "hand_back",
    "heal",
    "heartbeat",
    "promote",
    "publish",
    "pull",
    "read_history",
    "read_letters",
    "reclaim",
    "refill",
    "renew",
    "resolve",
    "retry",
    "run",
    "run_many",
    "settle",
    "status",
    "tidy",
    "wait_for_work",
    "workers",
]
