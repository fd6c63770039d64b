"""What an engine runs with on a CPU: weights, pages, rows. gpu_start.py does the same on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.cpu.large_pages import use_large_pages
from kernels.table import Backend, Ops
from worker.engine.config import ConfigError, EngineConfig
from worker.engine.device_runner import DeviceRunner
from worker.engine.devices import HostDevice
from worker.engine.kv_format import KvFormat
from worker.engine.memory import free_bytes
from worker.engine.resolve import cpu_dtype, cpu_ops, max_len_of, num_pages_of, stored_weights
from worker.engine.rows import RowTable
from worker.engine.runner import PlainRunner, Runner
from worker.engine.weight_form import keep_of, weight_bytes_of
from worker.models.checkpoint import weight_bytes
from worker.models.config import ModelConfig
from worker.models.decoder import Decoder
from worker.models.projections import Keep


@dataclass(frozen=True)
class Started:
    """All that an engine needs."""

    decoder: Decoder
    ops: Ops
    kv: Tensor  # [layers, pages, 2, Hkv, page_size, D]
    runner: Runner
    max_len: int
    slower_because: str | None  # why no faster backend runs, or weights are not stored as was asked


@torch.inference_mode()
def start(directory: Path, shape: ModelConfig, config: EngineConfig) -> Started:
    """Load. Raises ModelError, and ConfigError for a setting or too little memory."""
    # what was rounded to 4 or 8 bits loses nothing by bf16, and fp16 would become fp32 here
    dtype = cpu_dtype(config, shape.dtype if shape.quantisation is None else "bfloat16")
    max_len = max_len_of(config, shape)
    kv_format = KvFormat.of(config.kv_dtype, dtype)
    on_device = bool(config.device_rows or config.ahead)
    all_formats = on_device and config.backend in (Backend.TORCH, Backend.TRITON)
    if config.kv_dtype == "fp8" and not all_formats:
        raise ConfigError("kv_dtype fp8 is for GPUs; on this CPU give --kv-dtype int8 or auto")
    keep = keep_of(config, shape, narrow=all_formats)
    taken = weight_bytes(directory) if keep is Keep.AS_READ else weight_bytes_of(shape, keep, dtype)
    num_pages = num_pages_of(config, shape, kv_format, max_len, free_bytes() - taken)
    max_len = min(max_len, num_pages * config.page_size)
    ops, slower_because = cpu_ops(config, shape, dtype)
    stored, kept_because = "auto", None
    if not all_formats:
        stored, kept_because = stored_weights(config, shape, torch.device("cpu"), dtype)
    how: dict[str, Any] = {"deterministic": config.deterministic, "keep": keep, "stored": stored}
    decoder = Decoder(directory, shape, ops, dtype, max_len=max_len, **how)
    where = (shape, num_pages, config.page_size, decoder.device)
    kv, scales = kv_format.pages(*where), kv_format.scales(*where)
    use_large_pages(kv)  # memory is taken page by page as it is first written; nobody reads what is not
    how = {"exact_noise": config.deterministic, "kv_scales": scales}
    runner: Runner
    if on_device:
        sizes = config.max_rows, max_len, config.tokens_a_step("cpu")
        runner = DeviceRunner(decoder, ops, HostDevice(), kv, *sizes, **how)
    else:
        runner = PlainRunner(decoder, RowTable(ops, config.max_rows, max_len, config.page_size), kv, **how)
    because = "; ".join(filter(None, (slower_because, kept_because))) or None
    return Started(decoder, ops, kv, runner, max_len, because)
