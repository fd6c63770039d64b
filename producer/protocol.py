"""The queue protocol: what lies in Redis, and the jobs, events and results that travel through it.

One partition of one queue lives under one hash tag, so each change of a job's state is one Lua script (scripts/*.lua,
as typed calls in calls/) on one slot of a cluster. `T` is `{slip:<queue>:<partition>}`. A job id is
`<partition>.<tenant>.<random>`, made by the client, so every re-send is recognised and every client finds the slot.

| Key             | Type   | Holds                                  | Written by             | Expires                 |
|-----------------|--------|----------------------------------------|------------------------|-------------------------|
| `T:lane:<lane>` | stream | an entry per job to run, `j` = its id; | enqueue, pull, reclaim,| entry deleted at the    |
|                 |        | group `workers`: who has which         | claim, renew, finish...| end of its job          |
| `T:job:<id>`    | hash   | the job's state, see below             | all but pull, reclaim  | a day after its results |
| `T:tokens:<id>` | stream | the job's events, see below            | claim, publish, finish,| `result_ttl` after the  |
|                 |        |                                        | stop                   | end                     |
| `T:result:<id>` | string | the final Result                       | finish                 | `result_ttl`            |
| `T:waiting:<t>` | zset   | tenant t's own line: `<lane> <id>`, by | enqueue, promote; all  | empty with the last     |
|                 |        | arrival and lane                       | that let one step out  |                         |
| `T:ready:<t>`   | hash   | its jobs on the lanes, never claimed   | with an entry; claim   | empty with the last     |
|                 |        | yet: id -> entry                       |                        |                         |
| `T:running:<t>` | set    | its jobs that were claimed             | claim; the end         | empty with the last     |
| `T:deadlines`   | zset   | every live job, by its deadline (ms)   | enqueue; the end       | empty with the last     |
| `T:delayed`     | zset   | jobs that are due later (ms)           | enqueue, retry, promote| empty with the last     |
| `T:counts`      | hash   | tenant -> jobs in its line; `/<lane>`  | as above               | an hour after the last  |
|                 |        | likewise; `/bytes` of live payloads;   |                        | live job                |
|                 |        | `/ended` since the start; samples      |                        |                         |
| `T:dead`        | stream | dead letters: `j` id, `r` why, `p`     | finish, discard        | 30 days; the last       |
|                 |        | payload, `h` history                   |                        | 10,000                  |
| `T:turns`       | hash   | lane -> its credit in weighted turns   | pull                   | an hour after last use  |
| `T:bell`        | stream | an entry, newer at each hand-back:     | hand_back              | an hour after last use  |
|                 |        | idle workers listen to it and lanes    |                        |                         |
| `T:wake:<any>`  | stream | an entry, newer each time: a client    | the client             | a minute after last use |
|                 |        | wakes its own blocking read            |                        |                         |
| `T:control`     | hash   | what operators set, see below          | operators              | never                   |
| `T:workers`     | hash   | consumer -> expiry in ms, and its info | heartbeat              | with the last worker    |

`T:job:<id>` holds `state` (queued, running, delayed, or how it ended), `lane`, `entry` (its id there, once claimed),
`payload` (the Job, as wire.py has it), `digest` of that, `epoch`, `owner` (`<epoch> <consumer>`, empty: nobody),
`deliveries`, `strikes`, `claim_offset` (tokens at the last claim), `alone` (1: it runs alone), `history` (lines
`<ms> <offset> <what>`), `resolved` and `fingerprint` (what the first owner decided, for which model), `result_ttl` and
`keep` (ms), `deadline`, `due`, `queued_at`, `claimed_at`, `ended_at` (ms), `offset` and `ended_by` (once ended),
`given_up_by` (the last owner that did), `requeued_as`, `nonce` (of the last claim, cancel or expiry: recognises a
re-sent one). The end removes `payload` and `resolved`.

`T:control` may hold `paused` (1: nothing is pulled), `max_depth` (live jobs), `max_bytes` (of payloads), `max_age`
(ms a job may live), `tenant_window` (a tenant's unclaimed jobs on the lanes; 64), `tenant_running` and `tenant_queued`
(a tenant's jobs on lanes and with workers; waiting), and for one tenant `<tenant>:running`, `<tenant>:queued`.

**The event stream fences itself.** An entry's id is `<epoch>-<offset after it>`: a start `<epoch>-<n>`, tokens
`<epoch>-<n + count>`, the end `<epoch + 1>-<n>`. Redis refuses an id that is not greater than the last, so after a
takeover (a higher epoch) nothing of an old owner enters. An entry's one field is `s` Started, `t` Tokens or `e` Ended
(wire.py); beside `s` stands `n`, the number of the delivery.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import ErrorDetails

from producer import errors
from producer.errors import InvalidJob
from producer.keys import JOB_ID, TENANT, Lane, idempotent_job_id, new_job_id, partition_of

PROTOCOL = 1
"""Version of everything below. A reader refuses what is newer, by that reason."""

FinishReason = Literal["stop", "length", "cancelled", "expired", "failed", "dead"]
State = Literal["queued", "running", "delayed", "stop", "length", "cancelled", "expired", "failed", "dead"]


def running_hash(previous: int, token_ids: list[int] | tuple[int, ...]) -> int:
    """The 64-bit hash of a job's tokens so far, from the hash before `token_ids` (0 at the start).

    Token by token (FNV-1a), so where events were cut makes no difference; each step is a bijection, so two streams of
    one length that differ in a single token never agree.
    """
    digest = previous
    for token in token_ids:
        digest = ((digest ^ token ^ 0xCBF29CE484222325) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return digest


class Message(BaseModel):
    """What all models here share: no unknown fields, no guessing of types, no NaN, no change after the making."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Input(Message):
    """A message whose errors name one field: InvalidJob instead of pydantic's list of them."""

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_field(cls, data: Any, validate: ValidatorFunctionWrapHandler) -> Self:
        try:
            made: Self = validate(data)
        except ValidationError as error:
            raise invalid(error.errors(include_url=False)[0], cls) from None
        return made


MOST_LOGPROBS = 20
"""Alternatives that a job may ask the log-probabilities of, for each token."""


def _keyed_by_ids(given: Any) -> Any:
    """Ids as JSON has them, and as payloads have them in msgpack: keys are text there."""
    if not isinstance(given, Mapping):
        return given
    return {int(k) if isinstance(k, str) and re.fullmatch("[0-9]{1,10}", k) else k: v for k, v in given.items()}


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[tuple[TokenId, ...], Field(strict=False)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
LogitBias = Annotated[
    dict[TokenId, Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=300),
    BeforeValidator(_keyed_by_ids),
    AfterValidator(lambda bias: dict(sorted(bias.items()))),  # in one order: the same bias is the same payload
    PlainSerializer(lambda bias: {str(token): value for token, value in bias.items()}),
]


class SamplingParams(Input):
    """How to choose tokens. None is the model's own default (its generation config, else plain sampling)."""

    temperature: Annotated[float, Field(ge=0)] | None = None
    """0 is greedy."""
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """0 keeps all."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=2)] | None = None
    """A logit of a token that the prompt or the answer has is divided by it, or multiplied where it is below 0. 1: off.
    """
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken off a token's logit as often as the answer has the token."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken off once if the answer has the token."""
    logit_bias: LogitBias | None = None
    """Token id -> what is added to its logit."""
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1, max_length=4096)] | None = None
    """Nothing but these is ever drawn; None: anything is."""
    bad_words: Annotated[tuple[StopString, ...], Field(max_length=64, strict=False)] = ()
    """Texts whose tokens are never drawn in a row: as the tokenizer writes the text, alone and behind a space. The same
    text in other tokens is not met."""
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    """Tell each token's log-probability, and those of so many of the likeliest. By the model's own logits: before bias,
    penalties, temperature and all that rules tokens out."""
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """None: what is left of the model's length."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """None: drawn once, by the first worker."""
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """No end of sequence, stop string or stop id counts before this many tokens."""
    stop: Annotated[tuple[StopString, ...], Field(max_length=16, strict=False)] = ()
    stop_token_ids: Annotated[TokenIds, Field(max_length=64)] = ()
    ignore_eos: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidJob("min_tokens", self.min_tokens, f"at most max_tokens ({self.max_tokens})")
        return self


class ChatMessage(Message):
    """One message of a conversation. Which roles there are is the model's chat template's business."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str


class Job(Input):
    """One generation. Exactly one of `prompt`, `messages` (the chat template is applied) and `prompt_token_ids`.

    Raises InvalidJob, which names the field.
    """

    id: str
    """Made for you: `<partition>.<tenant>.<random>`. Submitting the same Job twice is one job."""
    prompt: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1, strict=False)] | None = None
    prompt_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = None
    sampling: SamplingParams = SamplingParams()
    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """None: whatever the queue's workers serve. Any other than theirs fails."""
    lane: Lane = "normal"
    tenant: str = "default"
    result_ttl: Annotated[float, Field(ge=1, le=30 * 86400)] = 3600.0
    """Seconds that events and result are kept after the end."""
    not_before: Annotated[float, Field(ge=0, lt=2**33)] | None = None
    """When it may run first, in Unix seconds."""
    deadline: Annotated[float, Field(ge=0, lt=2**33)] | None = None
    """When it ends as `expired` if it has not ended before, queued or running, in Unix seconds. The queue sets an
    earlier one where the job would grow older than it lets jobs become (a day, unless its operator says else)."""
    idempotency_key: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Submitting the same again under the same key of a tenant is the first job. The id follows from it."""
    idempotency_ttl: Annotated[float, Field(ge=0, le=30 * 86400)] = 86400.0
    """Seconds after the end for which the key is remembered, at least."""
    requeued_from: str | None = None
    """The dead job that this one is submitted instead of."""

    @model_validator(mode="before")
    @classmethod
    def _give_an_id(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise InvalidJob("job", data, "a map of fields")
        tenant = data.get("tenant", "default")
        if not isinstance(tenant, str) or not TENANT.fullmatch(tenant):
            raise InvalidJob("tenant", tenant, "1 to 64 letters, digits, `_` or `-`")
        if "id" in data:
            return data
        key = data.get("idempotency_key")
        own = idempotent_job_id(key, tenant=tenant) if isinstance(key, str) else new_job_id(tenant=tenant)
        return {**data, "id": own}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        match = JOB_ID.fullmatch(self.id)
        if match is None or match["tenant"] != self.tenant:
            raise InvalidJob("id", self.id, f"<partition>.{self.tenant}.<8 to 64 random characters>")
        if self.idempotency_key is not None:
            stem = idempotent_job_id(self.idempotency_key, tenant=self.tenant).partition(".")[2]
            if self.id.partition(".")[2] != stem:
                raise InvalidJob("id", self.id, f"none beside an idempotency_key, which makes it <partition>.{stem}")
        if self.deadline is not None and self.deadline <= (self.not_before or 0):
            raise InvalidJob("deadline", self.deadline, f"a time after not_before ({self.not_before or 0})")
        given = [name for name in ("prompt", "messages", "prompt_token_ids") if getattr(self, name) is not None]
        if len(given) != 1:
            expected = "exactly one of prompt, messages and prompt_token_ids"
            raise InvalidJob(given[1] if given else "prompt", " and ".join(given) or None, expected)
        return self

    @property
    def partition(self) -> int:
        """The partition of the queue that holds it: the first part of its id."""
        return partition_of(self.id)


class Failure(Message):
    """Why a job has no good answer: a code for programs, a sentence for people."""

    code: str
    message: str


class Usage(Message):
    """Tokens in and out; `cached_tokens` of the prompt's came from the prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Timings(Message):
    """Seconds from enqueue to the first claim, to the first token and to the end, by Redis' clock or the worker's."""

    queued_s: float
    first_token_s: float | None = None
    total_s: float


class Started(Message):
    """A worker took the job: the first time, or over from another that was lost (`delivery` > 1)."""

    kind: Literal["started"] = "started"
    offset: int
    delivery: int = 1
    worker: str
    model: str | None = None


class TokenLogprob(Message):
    """How likely a token was, as a natural logarithm, and which were the likeliest in its place."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob), the likeliest first, ties by lower id: as many as the job asked for, but none impossible."""


class Tokens(Message):
    """Some tokens with their text, and `offset` of the job's tokens up to and with them."""

    kind: Literal["tokens"] = "tokens"
    offset: int
    token_ids: tuple[int, ...] = Field(strict=False)
    pieces: tuple[str, ...] = Field(strict=False)
    """The text that each token completed: as many as ids, and empty where a character is not whole yet."""
    hash: int
    """`running_hash` of the job's tokens up to `offset`."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """As many as ids, where the job asked for them."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        count = len(self.token_ids)
        if count != len(self.pieces) or self.offset < count:
            raise ValueError(f"{count} ids, {len(self.pieces)} pieces of text, offset {self.offset}")
        if self.logprobs is not None and len(self.logprobs) != count:
            raise ValueError(f"{count} ids, log-probabilities of {len(self.logprobs)}")
        return self

    @property
    def text(self) -> str:
        """The tokens' text."""
        return "".join(self.pieces)

    @property
    def start(self) -> int:
        """Tokens of the job before these."""
        return self.offset - len(self.token_ids)

    def since(self, offset: int) -> Tokens:
        """What of this lies after `offset` of the job's tokens (which is in here)."""
        cut = offset - self.start
        rest: dict[str, Any] = {"token_ids": self.token_ids[cut:], "pieces": self.pieces[cut:]}
        if self.logprobs is not None:
            rest["logprobs"] = self.logprobs[cut:]
        return self.model_copy(update=rest)


class Resync(Message):
    """What the reader has from `offset` on is not so any more, and is told anew: drop it. Made by the reading side.

    After a failover of Redis that lost the latest tokens, where the worker that went on drew others, or the job ended.
    """

    kind: Literal["resync"] = "resync"
    offset: int


class Ended(Message):
    """The job is over. Nothing follows."""

    kind: Literal["ended"] = "ended"
    offset: int
    reason: FinishReason
    error: Failure | None = None
    usage: Usage | None = None
    """None where no worker wrote the end (a cancel, an expiry)."""


Event = Started | Tokens | Resync | Ended


class Result(Message):
    """The whole answer. `text` may end before `token_ids` do: a stop string's own text is not part of it."""

    job_id: str
    finish_reason: FinishReason
    text: str
    token_ids: tuple[int, ...] = Field(strict=False)
    logprobs: tuple[TokenLogprob, ...] | None = None
    """As many as `token_ids`, where the job asked for them."""
    error: Failure | None = None
    usage: Usage | None = None
    timings: Timings | None = None

    @property
    def ok(self) -> bool:
        """Whether this is the answer that was asked for."""
        return self.finish_reason in ("stop", "length")

    def raise_for_failure(self) -> Result:
        """Itself, or JobFailed, JobCancelled, JobExpired or JobDead."""
        if self.ok:
            return self
        raised = {
            "failed": errors.JobFailed,
            "cancelled": errors.JobCancelled,
            "expired": errors.JobExpired,
            "dead": errors.JobDead,
        }[self.finish_reason]
        error = self.error
        raise raised(self.job_id, error.code if error else None, error.message if error else None)


def invalid(error: ErrorDetails, model: type[BaseModel]) -> InvalidJob:
    """pydantic's finding in our words: which field, what it was, what it may be."""
    field = ".".join(str(part) for part in error["loc"] if part != "[key]") or model.__name__
    if error["type"] == "extra_forbidden":
        return InvalidJob(field, "an unknown field", f"one of {', '.join(model.model_fields)}")
    if error["type"] == "missing":
        return InvalidJob(field, "nothing", "a value")
    expected = re.sub(r"^(Input should (be|have)|Value error,) ", "", error["msg"])
    expected = re.sub(r"^(String|Tuple) should have ", "", expected)
    return InvalidJob(field, error["input"], expected)
