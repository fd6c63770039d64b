"""`python -m worker`: one worker. `python -m worker health`: is it well (exit 0) or not (exit 1)?

Exit codes: 0 stopped and drained, 1 can't start (model, memory, settings that don't fit the machine), 2 bad flags or
settings, 3 the engine was lost, 4 no Redis at the start.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import redis as sync_redis
import structlog

from producer.address import redact
from producer.errors import RedisUnavailable
from worker.settings import InvalidSettings, Settings, read_settings

EXIT_CANT_START, EXIT_USAGE, EXIT_NO_REDIS = 1, 2, 4
_HEALTHY_WITHIN_S = 10.0
_REDIS_TIMEOUT_S = 2.0  # for one answer: the loop has other things to do than wait for a Redis that is away


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments say and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["health"]:
        return _health()
    print_config = "--print-config" in given
    try:
        settings = read_settings([flag for flag in given if flag != "--print-config"])
    except InvalidSettings as error:
        return _complain(str(error), EXIT_USAGE)
    if print_config:
        print(json.dumps({**settings.model_dump(mode="json"), "redis": redact(settings.redis)}, indent=2))
        return 0
    return _work(settings)


def _work(settings: Settings) -> int:
    # Imported late: --help and --print-config answer at once, and the engine's process imports beside ours.
    from producer import connection
    from worker.engine_link import EngineLink, EngineLost, EngineUnable
    from worker.log import configure
    from worker.text import ModelFilesError, TextModel
    from worker.text.files import locate

    configure(settings.log_format, settings.log_level)
    engine: EngineLink | None = None
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the loop knows better; PID 1 passes over it
        redis = connection.connect(settings.redis, timeout_s=_REDIS_TIMEOUT_S, resends=0)
        directory = str(locate(settings.model))  # once: a hub id is fetched here
        engine = EngineLink(directory, settings.engine, patience_s=settings.lease_s)
        _wait_for_redis(redis, settings)
        text = TextModel.from_pretrained(directory)
        from worker.loop import Worker

        return Worker(settings, redis, engine, text).run()
    except KeyboardInterrupt:
        return _complain("told to stop before it was ready", 0)
    except RedisUnavailable as error:
        return _fail(str(error), EXIT_NO_REDIS, settings, None)
    except EngineUnable as error:
        return _fail(str(error), EXIT_CANT_START, settings, error.traceback)
    except (ModelFilesError, EngineLost) as error:
        return _fail(str(error), EXIT_CANT_START, settings, None)
    finally:
        if engine is not None:
            engine.close()


def _wait_for_redis(redis: sync_redis.Redis, settings: Settings) -> None:
    """Raises RedisUnavailable if it does not answer within redis_wait_s, or at once if it refuses us."""
    from redis.exceptions import ClusterDownError

    from producer.connection import speaking_to

    deadline = time.monotonic() + settings.redis_wait_s
    while True:
        try:
            with speaking_to(settings.redis):
                redis.ping()
            return
        except RedisUnavailable as error:
            refused = isinstance(error.__cause__, sync_redis.AuthenticationError | sync_redis.ResponseError)
            refused = refused and not isinstance(error.__cause__, ClusterDownError)  # its nodes are still to meet
            if refused or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _health() -> int:
    path = os.environ.get("SLIPSTREAM_HEALTH_FILE")
    if not path:
        return _complain("SLIPSTREAM_HEALTH_FILE is not set: name the file that the worker touches", EXIT_USAGE)
    try:
        age = time.time() - Path(path).stat().st_mtime
    except OSError:
        return _complain(f"{path} is not there: the worker has not started, or was given no --health-file", 1)
    if age > _HEALTHY_WITHIN_S:
        return _complain(f"{path} was last touched {age:.0f} s ago: the worker makes no progress", 1)
    print("healthy")
    return 0


def _fail(message: str, code: int, settings: Settings, origin: str | None) -> int:
    if settings.traceback:
        print(origin or traceback.format_exc(), file=sys.stderr)
    return _complain(message, code)


def _complain(message: str, code: int) -> int:
    for line in message.splitlines():
        print(f"slipstream worker: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    structlog.reset_defaults()
    sys.exit(main())
