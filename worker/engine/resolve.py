"""What a configuration comes to for a model on this machine: device, dtype, operations, length and pages.

In: EngineConfig, ModelConfig, bytes that are free. Out: the value to run with, or ConfigError, which says what to give
instead. Nothing is loaded here.
"""

from __future__ import annotations

import torch

from kernels.cpu.ops import fits
from kernels.errors import KernelsUnavailable
from kernels.linear import can_pack, int8_refused
from kernels.table import Backend, Ops, best_ops, ops_for
from worker.engine.config import ConfigError, EngineConfig
from worker.engine.kv_format import KvFormat
from worker.models.config import ModelConfig

_POOL_SHARE = 0.25  # of the free memory, for the default pool


def device_of(config: EngineConfig) -> str:
    """cpu or cuda: what is asked for, else a GPU where torch finds one."""
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def gpu_dtype(config: EngineConfig, checkpoint: str) -> torch.dtype:
    """The dtype to compute in on a GPU: the one asked for, or the checkpoint's."""
    return _named_dtype(config.dtype if config.dtype != "auto" else checkpoint, "float16")


def cpu_dtype(config: EngineConfig, checkpoint: str) -> torch.dtype:
    """The dtype to compute in: the one asked for, or the checkpoint's where this CPU is good at it."""
    asked = config.dtype
    name = asked if asked != "auto" else checkpoint
    dtype = _named_dtype(name, "float32")
    packs = can_pack(torch.device("cpu"), dtype)
    if asked == "auto" and dtype != torch.float32 and not packs:
        return torch.float32
    if config.deterministic and not packs:
        raise ConfigError(
            f"deterministic mode has no {name} on this CPU; give --dtype float32, or bfloat16 if it has that"
        )
    return dtype


def _named_dtype(name: str, other: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f"config.json names dtype {name!r}; give --dtype bfloat16 or {other}")
    return dtype


def cpu_ops(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> tuple[Ops, str | None]:
    """The backend asked for, or the best there is, and why no better one."""
    sizes = (model.hidden_size, model.intermediate_size, model.head_dim)
    if config.backend == "auto":
        return best_ops(dtype, sizes)
    odd = fits(dtype, sizes) if config.backend == Backend.C else None
    if odd is not None:
        raise ConfigError(f"backend c can't run this model: {odd}; give --backend auto or torch")
    try:
        return ops_for(Backend(config.backend), dtype), None
    except KernelsUnavailable as error:
        raise ConfigError(
            f"backend {config.backend} can't be had here: {error}; give --backend auto or torch"
        ) from None


def stored_weights(
    config: EngineConfig, model: ModelConfig, device: torch.device, dtype: torch.dtype
) -> tuple[str, str | None]:
    """How the layers' weights are stored, auto or int8, and why not as asked for."""
    inputs = {model.hidden_size, model.intermediate_size, model.num_heads * model.head_dim}
    refused = None if config.weights == "auto" else int8_refused(device, dtype, inputs)
    return ("auto", f"weights stay in {dtype}: {refused}") if refused else (config.weights, None)


def max_len_of(config: EngineConfig, model: ModelConfig) -> int:
    """Tokens of a sequence at most: as many as asked for, or the model's own."""
    if config.max_len is not None and config.max_len > model.max_len:
        raise ConfigError(f"max_len must be at most the model's {model.max_len}; got {config.max_len}")
    return config.max_len or model.max_len


def num_pages_of(
    config: EngineConfig,
    model: ModelConfig,
    kv: KvFormat,
    max_len: int,
    free: int,
    share: float = _POOL_SHARE,
) -> int:
    """The pages asked for, or those for all rows at full length, at most what that share of `free` bytes holds."""
    page_bytes = kv.page_bytes(model, config.page_size)
    free = max(0, free)
    if config.num_pages is not None:
        if config.num_pages * page_bytes > free:  # memory costs nothing until it is written: checked now or never
            raise ConfigError(
                f"not enough memory for a page pool of num_pages {config.num_pages:,}: it takes "
                f"{config.num_pages * page_bytes:,} bytes, {free:,} are free; give at most {free // page_bytes:,}"
            )
        return config.num_pages
    affordable = int(free * share) // page_bytes
    if affordable < 1:
        part = "a quarter of the" if share == _POOL_SHARE else "all of the"
        raise ConfigError(
            f"not enough memory for a page pool: one page takes {page_bytes:,} bytes, and {part} "
            f"{free:,} free bytes is all it may take; free memory or give num_pages"
        )
    return min(config.max_rows * -(-max_len // config.page_size), affordable)
