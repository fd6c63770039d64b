"""A worker's settings: flags first, then the environment (SLIPSTREAM_...), then a TOML file, then these defaults.

The engine's own are passed on as they are: worker/engine/config.py checks them against the machine.
"""

from __future__ import annotations

import difflib
import os
import socket
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from producer.address import Address, redact
from producer.keys import QUEUE

ENGINE_FIELDS = (
    "max_rows",
    "token_budget",
    "step_time_s",
    "page_size",
    "num_pages",
    "max_len",
    "prefix_cache",
    "watermark",
    "headroom",
    "max_drafts",
    "dtype",
    "kv_dtype",
    "weights",
    "backend",
    "deterministic",
    "device",
    "ahead",
    "graphs",
    "memory_share",
    "threads",
)


class InvalidSettings(Exception):
    """A setting is unknown or out of range: which, got against expected. One line for each."""


class Settings(BaseSettings):
    """One worker: it serves a queue with one model until SIGTERM.

    Each flag may also be set in the environment, as SLIPSTREAM_ and its name in capitals (SLIPSTREAM_MAX_ROWS), or in
    the TOML file that SLIPSTREAM_CONFIG names (max_rows = 32); a flag wins over the environment, that over the file.
    `--print-config` prints what came of it, as JSON, and exits. `python -m worker health` exits 0 while the worker that
    touches SLIPSTREAM_HEALTH_FILE is well. Exit codes: 0 drained; 1 can't start; 2 bad settings; 3 the engine was lost;
    4 no Redis at the start.
    """

    model_config = SettingsConfigDict(
        env_prefix="SLIPSTREAM_",
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="python -m worker",
    )

    model: str = Field(description="directory in Hugging Face format, or a hub id")
    model_name: str | None = Field(
        None, description="the name jobs may ask for; the directory's or hub id's by default"
    )
    redis: str = Field(
        "redis://127.0.0.1:6379/0", description="URL: redis://, redis+sentinel:// or redis+cluster://, rediss for TLS"
    )
    redis_wait_s: float = Field(10.0, ge=0, description="seconds to wait for Redis at the start before giving up")
    queue: str = Field("default", pattern=f"^{QUEUE.pattern}$", description="the queue to serve")
    partitions: int = Field(1, ge=1, le=100_000, description="partitions the queue has: what its producers say, too")
    partition: int | None = Field(None, ge=0, description="serve this partition alone; all of them by default")
    name: str = Field(default_factory=socket.gethostname, description="this worker's name; made unique by its start")

    max_rows: int = Field(64, ge=1, description="seats in the batch: jobs decoded at once")
    token_budget: int | None = Field(
        None, ge=1, description="most tokens in a step, prompts and decodes together; 512 by default, on a GPU 4,096"
    )
    step_time_s: float | None = Field(
        0.1, gt=0, le=60, description="seconds a step aims to take while jobs decode; long prompts go in shorter chunks"
    )
    page_size: int = Field(32, description="tokens a page of K/V memory: 16, 32, 64 or 128")
    num_pages: int | None = Field(None, description="pages in the pool; by default from rows, length and free memory")
    max_len: int | None = Field(None, description="longest job, prompt and output, in tokens; the model's by default")
    prefix_cache: bool = Field(True, description="keep K/V pages of what ended for jobs that begin alike")
    watermark: float = Field(0.02, ge=0, lt=1, description="share of the pool that admission leaves free")
    headroom: float = Field(0.2, ge=0, le=1, description="share of running jobs' possible growth left free, at first")
    max_drafts: int = Field(16, ge=0, description="most tokens guessed from a job's own text and checked at once")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="of weights and K/V")
    kv_dtype: Literal["auto", "int8", "fp8"] = Field("auto", description="of K/V in the pages; fp8 on a GPU alone")
    weights: Literal["auto", "int8", "int4", "fp8"] = Field(
        "auto", description="how the layers' are stored; auto: as the checkpoint has them; int4 and fp8 on a GPU"
    )
    backend: Literal["auto", "c", "torch", "triton"] = Field(
        "auto", description="of the operations; auto: the fastest here"
    )
    deterministic: bool = Field(False, description="the same tokens whatever else is in the batch")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where torch finds one")
    ahead: bool | None = Field(None, description="launch a step before the last one is read; on a GPU by default")
    graphs: bool = Field(True, description="on a GPU, keep steps as CUDA graphs")
    memory_share: float = Field(0.9, gt=0, le=1, description="share of a GPU's memory that may be taken")
    threads: int | None = Field(None, ge=1, description="CPU threads of a step; all cores by default")

    lease_s: float = Field(15.0, ge=1, description="seconds without renewal after which others may take a job over")
    renew_interval_s: float | None = Field(None, gt=0, description="seconds between renewals; a third of the lease")
    reclaim_interval_s: float | None = Field(
        None, gt=0, description="seconds between looks for jobs of lost workers; a third of the lease"
    )
    max_strikes: int = Field(4, ge=1, description="workers that a job may cost before it is dead-lettered")
    max_deliveries: int = Field(
        50, ge=1, description="claims of a job before it is dead-lettered, hand-backs not counted"
    )
    retry_backoff_s: float = Field(1.0, ge=0, description="pause of a job after its first strike; doubles with each")
    flush_interval_s: float = Field(0.025, gt=0, le=1, description="seconds between two publications of a job's tokens")
    drain_grace_s: float = Field(30.0, ge=0, description="seconds that running jobs get to end after SIGTERM")
    max_unpublished: int = Field(65_536, ge=1, description="tokens held while Redis is away before decoding pauses")
    health_file: Path | None = Field(None, description="touched while all is well; `python -m worker health` reads it")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is written")
    traceback: bool = Field(False, description="show where an error of the start came from")

    @property
    def served_partitions(self) -> range:
        """Numbers of the partitions to serve."""
        return range(self.partitions) if self.partition is None else range(self.partition, self.partition + 1)

    @property
    def renew_s(self) -> float:
        """Seconds between two renewals: by default two may fail before the lease runs out."""
        return self.renew_interval_s or self.lease_s / 3

    @property
    def reclaim_s(self) -> float:
        """Seconds between two looks for jobs of lost workers, give or take a fifth.

        The bound on recovery: after a worker died its jobs wait at most lease_s + 1.2 * reclaim_s for a new owner that
        has room, by default 1.4 leases, 21 s. A worker that drains or loses its engine hands them over at once.
        """
        return self.reclaim_interval_s or self.lease_s / 3

    @field_validator("redis")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        Address.parse(url)
        return url

    @model_validator(mode="after")
    def _has_its_partition(self) -> Self:
        if self.partition is not None and self.partition >= self.partitions:
            raise ValueError(f"partition: expected one below partitions ({self.partitions}), got {self.partition}")
        return self

    @model_validator(mode="after")
    def _renews_in_time(self) -> Self:
        if self.renew_s > self.lease_s / 2:
            raise ValueError(
                f"renew_interval_s: expected at most half of lease_s ({self.lease_s / 2:g}), got {self.renew_s:g}"
            )
        return self

    @property
    def served_name(self) -> str:
        """The model's name for jobs and readers."""
        return self.model_name or Path(self.model).name

    @property
    def engine(self) -> dict[str, Any]:
        """The engine's settings as plain values."""
        return {name: getattr(self, name) for name in ENGINE_FIELDS}


def read_settings(arguments: list[str], **given: Any) -> Settings:
    """Settings from flags (`arguments`), the environment and the file named by SLIPSTREAM_CONFIG; `given` over all.

    Raises InvalidSettings. `--help` and a flag that is not known print what argparse prints and exit, 0 or 2.
    """
    _check_environment()
    try:
        return Settings(_cli_parse_args=arguments, **{**_from_file(), **given})  # type: ignore[call-arg]
    except ValidationError as error:
        lines = [_explain(found) for found in error.errors(include_url=False)]
        raise InvalidSettings("\n".join(lines)) from None
    except SettingsError as error:
        raise InvalidSettings(str(error)) from None


def _check_environment() -> None:
    """Refuse a variable that is almost one of ours. The rest may be anyone's: Kubernetes makes some too."""
    known = [f"SLIPSTREAM_{name.upper()}" for name in Settings.model_fields]
    for name in os.environ:
        if not name.startswith("SLIPSTREAM_") or name in known:
            continue
        if close := difflib.get_close_matches(name, known, n=1, cutoff=0.9):
            raise InvalidSettings(f"{name} is no setting; is {close[0]} meant? Rename it or unset it")


def _from_file() -> dict[str, Any]:
    """The settings of the TOML file, less what the environment sets too."""
    path = os.environ.get("SLIPSTREAM_CONFIG")
    if not path:
        return {}
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidSettings(f"SLIPSTREAM_CONFIG={path} can't be read: {error}") from None
    unknown = sorted(set(found) - set(Settings.model_fields))
    if unknown:
        raise InvalidSettings(
            f"{path}: unknown settings {', '.join(unknown)}; known: {', '.join(Settings.model_fields)}"
        )
    return {name: value for name, value in found.items() if f"SLIPSTREAM_{name.upper()}" not in os.environ}


def _explain(found: Any) -> str:
    name = ".".join(str(part) for part in found["loc"]) or "settings"
    if found["type"] == "missing":
        return f"{name} is not set: give --{name.replace('_', '-')} or SLIPSTREAM_{name.upper()}"
    message, got = found["msg"].removeprefix("Value error, "), found["input"]
    if not found["loc"]:
        return f"{name}: {message}"  # what it got is all settings, passwords among them
    return f"{name}: {message[0].lower()}{message[1:]}; got {redact(got) if isinstance(got, str) else got!r}"
