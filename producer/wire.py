"""Jobs, events and results as bytes: msgpack maps with a protocol version `v`. A job may be JSON as well.

In: bytes of unknown origin. Out: a validated model, or Undecodable with the reason. Size, depth and number of values
are checked before anything is built from the bytes, so no payload can cost more memory than a few times its limit.

    job      {v, the fields of Job but id, which the key has}
    started  {v, worker, model?}
    tokens   {v, ids: [int], text: [str, one per id], hash: int, logprobs?: as logprobs.py has them}
    ended    {v, reason, error?: {code, message}, usage?: {...}}
    result   {v, the fields of Result but job_id, logprobs as above}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgpack
from pydantic import ValidationError

from producer import logprobs as packed_logprobs
from producer.errors import InvalidJob, NewerProtocol, Undecodable
from producer.logprobs import Logprob
from producer.protocol import (
    PROTOCOL,
    Ended,
    Failure,
    FinishReason,
    Job,
    Message,
    Result,
    Started,
    Tokens,
    Usage,
    invalid,
)

MAX_JOB_BYTES = 4 << 20
"""A prompt of a million characters with room to spare; what is longer does not belong in Redis."""
MAX_RESULT_BYTES = 64 << 20
SMALL_EVENT_BYTES = 1024
"""So small a tokens event is built at once: a walk through it first takes as long again (2.7 us of 6.2), and msgpack
builds no container longer than its bytes."""
MAX_DEPTH = 8
MAX_VALUES = 1 << 20

AnyMessage = TypeVar("AnyMessage", bound=Message)


def encode_job(job: Job) -> bytes:
    """The payload that enqueue stores. Raises InvalidJob if it is over MAX_JOB_BYTES."""
    payload = _pack(job.model_dump(exclude={"id"}, exclude_defaults=True))
    if len(payload) > MAX_JOB_BYTES:
        raise InvalidJob("job", f"{len(payload)} bytes", f"at most {MAX_JOB_BYTES} bytes")
    return payload


def decode_job(payload: bytes, job_id: str) -> Job:
    """The job of a claim, from msgpack or JSON. Raises Undecodable (NewerProtocol if that is the reason)."""
    fields = _unpack("job", payload, MAX_JOB_BYTES)
    if fields.setdefault("id", job_id) != job_id:
        raise Undecodable("job", f"it says it is {fields['id']!r}, its key says {job_id}", "id")
    try:
        return Job.model_validate(fields)
    except InvalidJob as error:
        raise Undecodable("job", str(error), error.field) from error


def encode_started(worker: str, model: str | None = None) -> bytes:
    """What a claim publishes; offset and number of the delivery are added by its script."""
    return _pack({"worker": worker} | ({"model": model} if model is not None else {}))


def encode_tokens(
    token_ids: Sequence[int], pieces: Sequence[str], hash_after: int, logprobs: Sequence[Logprob] | None = None
) -> bytes:
    """Tokens with the text each completed. Made for every flush of every job, so nothing is validated here."""
    fields: dict[str, Any] = {"ids": token_ids, "text": pieces, "hash": hash_after}
    if logprobs is not None:
        fields["logprobs"] = packed_logprobs.pack(logprobs)
    return _pack(fields)


def encode_ended(reason: FinishReason, error: Failure | None = None, usage: Usage | None = None) -> bytes:
    """What finish, cancel and expiry publish last."""
    fields: dict[str, Any] = {"reason": reason}
    if error is not None:
        fields["error"] = error.model_dump()
    if usage is not None:
        fields["usage"] = usage.model_dump()
    return _pack(fields)


def encode_result(result: Result, logprobs: Sequence[Logprob] | None = None) -> bytes:
    """What `T:result:<id>` holds. logprobs: of its tokens, from one who has them like this; else the result's own."""
    fields = result.model_dump(exclude={"job_id", "logprobs"}, exclude_none=True)
    if logprobs is None and result.logprobs is not None:
        logprobs = packed_logprobs.plain(result.logprobs)
    if logprobs is not None:
        fields["logprobs"] = packed_logprobs.pack(logprobs)
    return _pack(fields)


def decode_result(blob: bytes, job_id: str) -> Result:
    """The result of `job_id`. Raises Undecodable."""
    fields = _with_logprobs("result", _unpack("result", blob, MAX_RESULT_BYTES))
    if fields.get("logprobs") is not None and len(fields["logprobs"]) != len(fields.get("token_ids", ())):
        raise Undecodable("result", "another number of log-probabilities than of tokens", "logprobs")
    return _validated("result", Result, fields | {"job_id": job_id})


def decode_tokens(blob: bytes, offset: int) -> Tokens:
    """One blob of tokens that ends at `offset` of its job. Raises Undecodable."""
    fields = _unpack("tokens event", blob, MAX_RESULT_BYTES, small=SMALL_EVENT_BYTES)
    if "ids" in fields:
        fields["token_ids"] = fields.pop("ids")
    if "text" in fields:
        fields["pieces"] = fields.pop("text")
    return _validated("tokens event", Tokens, _with_logprobs("tokens event", fields) | {"offset": offset})


def decode_event(entry: bytes, fields: Mapping[bytes, bytes]) -> Started | Tokens | Ended:
    """One entry of `T:tokens:<id>`: its id `<epoch>-<offset>` and its fields. Raises Undecodable."""
    offset = int(entry.rpartition(b"-")[2])
    if (blob := fields.get(b"t")) is not None:
        return decode_tokens(blob, offset)
    if (blob := fields.get(b"e")) is not None:
        known = _unpack("ended event", blob, MAX_RESULT_BYTES)
        return _validated("ended event", Ended, known | {"offset": offset})
    if (blob := fields.get(b"s")) is not None:
        known = _unpack("started event", blob, MAX_RESULT_BYTES)
        return _validated("started event", Started, known | {"offset": offset, "delivery": int(fields.get(b"n", 1))})
    raise Undecodable("event", f"none of the fields s, t and e in {sorted(fields)!r}")


def _with_logprobs(what: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with log-probabilities, where there are any, unpacked."""
    if "logprobs" in fields:
        try:
            fields["logprobs"] = packed_logprobs.unpack(fields["logprobs"])
        except ValueError as error:
            raise Undecodable(what, str(error), "logprobs") from error
    return fields


def _pack(fields: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb({"v": PROTOCOL} | fields)
    return packed


def _validated(what: str, model: type[AnyMessage], fields: dict[str, Any]) -> AnyMessage:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        reason = invalid(error.errors(include_url=False)[0], model)
        raise Undecodable(what, str(reason), reason.field) from error


def _unpack(what: str, blob: bytes, limit: int, small: int = 0) -> dict[str, Any]:
    """The map in `blob`, without its version. Checks size, shape (if over `small`) and version, not the fields."""
    if len(blob) > limit:
        raise Undecodable(what, f"{len(blob)} bytes, limit {limit}")
    is_json = blob[:1] in (b"{", b" ", b"\n", b"\r", b"\t")
    try:
        if len(blob) > small:
            _check_json(blob) if is_json else _check_msgpack(blob)
        fields = json.loads(blob.decode(), parse_constant=_no_constant) if is_json else msgpack.unpackb(blob)
    except Undecodable:
        raise
    except (ValueError, IndexError, RecursionError, msgpack.exceptions.UnpackException) as error:
        kind = "JSON" if is_json else "msgpack"
        raise Undecodable(what, f"not one whole {kind} map ({error or type(error).__name__})") from error
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise Undecodable(what, "not a map of named fields")
    version = fields.pop("v", None)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise Undecodable(what, f"expected a protocol version of 1 to {PROTOCOL}, got {version!r}", "v")
    if version > PROTOCOL:
        raise NewerProtocol(what, version, PROTOCOL)
    return fields


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


_JSON_SHAPE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{\]},]', re.DOTALL)


def _check_json(blob: bytes) -> None:
    """Count depth and values of JSON text, strings passed over whole."""
    depth, values = 0, 1
    for found in _JSON_SHAPE.finditer(blob):
        character = found[0]
        if character in (b"{", b"["):
            depth += 1
            values += 1
        elif character in (b"}", b"]"):
            depth -= 1
        elif character == b",":
            values += 1
        _check_shape(depth, values)


def _check_shape(depth: int, values: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if values > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES} values")


# Bytes that follow the first, by type: of fixed length; then (bytes of length, bytes besides) of strings and the like;
# then (bytes of count, values per item) of arrays and maps.
_FIXED = {
    **dict.fromkeys([*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3], 0),
    **dict(zip(range(0xCA, 0xD4), (4, 8, 1, 2, 4, 8, 1, 2, 4, 8), strict=True)),  # floats, unsigned, signed
    **dict(zip(range(0xA0, 0xC0), range(0x20), strict=True)),  # short strings
    **dict(zip(range(0xD4, 0xD9), (2, 3, 5, 9, 17), strict=True)),  # extensions
}
_COUNTED = dict(
    zip(
        (0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xD9, 0xDA, 0xDB),
        ((1, 0), (2, 0), (4, 0), (1, 1), (2, 1), (4, 1), (1, 0), (2, 0), (4, 0)),
        strict=True,
    )
)
_NESTING = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


def _check_msgpack(blob: bytes) -> None:
    """Walk one msgpack value without building it: depth, number of values, and that it ends where the bytes end."""
    at, values = 0, 0
    open_: list[int] = [1]  # values still to come, container by container
    while open_:
        if open_[-1] == 0:
            open_.pop()
            continue
        open_[-1] -= 1
        values += 1
        _check_shape(len(open_) - 1, values)
        first = blob[at]
        at += 1
        if (fixed := _FIXED.get(first)) is not None:
            at += fixed
        elif first in _COUNTED:
            width, more = _COUNTED[first]
            at += width + more + int.from_bytes(blob[at : at + width])
        elif 0x80 <= first < 0xA0:
            open_.append((first & 0x0F) * (2 if first < 0x90 else 1))
        elif first in _NESTING:
            width, each = _NESTING[first]
            open_.append(int.from_bytes(blob[at : at + width]) * each)
            at += width
        else:
            raise ValueError(f"byte 0x{first:02x} begins nothing")
    if at != len(blob):
        raise ValueError(f"{len(blob) - at} bytes too many" if at < len(blob) else "it breaks off")
