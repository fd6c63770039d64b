"""The scripts as typed calls, for producers and workers alike.

script.py    a script as a value; run, arun, run_many, arun_many
submit.py    enqueue, cancel, status, depth
take.py      ensure_group, pull, reclaim, claim, resolve, renew, hand_back
publish.py   publish, finish
presence.py  heartbeat, workers, wait_for_work, await_work
"""

from producer.calls.presence import await_work, heartbeat, wait_for_work, workers
from producer.calls.publish import Publication, PublishReply, finish, publish
from producer.calls.script import Call, arun, arun_many, run, run_many
from producer.calls.submit import (
    CancelReply,
    Enqueued,
    JobStatus,
    LaneDepth,
    cancel,
    depth,
    enqueue,
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
    claim,
    ensure_group,
    hand_back,
    pull,
    reclaim,
    renew,
    resolve,
)

__all__ = [
    "Call",
    "CancelReply",
    "Claim",
    "Delivery",
    "Enqueued",
    "Held",
    "JobStatus",
    "LaneDepth",
    "Publication",
    "PublishReply",
    "Pulled",
    "ReclaimCursor",
    "Reclaimed",
    "Resolution",
    "arun",
    "arun_many",
    "await_work",
    "cancel",
    "claim",
    "depth",
    "enqueue",
    "ensure_group",
    "finish",
    "hand_back",
    "heartbeat",
    "publish",
    "pull",
    "reclaim",
    "renew",
    "resolve",
    "run",
    "run_many",
    "status",
    "wait_for_work",
    "workers",
]
