"""What an engine runs with on a GPU: weights, pages, rows, graphs; made in the order in which they need memory.

The pages of K/V take what is left once the weights lie there and the largest steps have shown what they take beside.
Then everything that compiles is run once over padding, and steps of all shapes are captured. The figures tell what each
part takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.errors import KernelsUnavailable
from kernels.kv_scales import KvScales
from kernels.table import Backend, Ops, ops_for
from worker.engine.config import ConfigError, EngineConfig
from worker.engine.cuda import CompileWatch, CudaDevice, measured_memory
from worker.engine.device_runner import DeviceRunner
from worker.engine.kv_format import KvFormat
from worker.models.checkpoint import Weights
from worker.models.config import ModelConfig
from worker.models.decoder import Decoder
from worker.models.projections import Keep


@dataclass(frozen=True)
class Started:
    """All that an engine needs, and what its start took: seconds and bytes, by part."""

    decoder: Decoder
    ops: Ops
    kv: Tensor  # [layers, pages, 2, Hkv, page_size, D]
    runner: DeviceRunner
    max_len: int
    compiled: CompileWatch
    figures: dict[str, Any]


@torch.inference_mode()
def start(
    weights: Weights,
    model: ModelConfig,
    config: EngineConfig,
    dtype: torch.dtype,
    max_len: int,
    num_pages_of: Callable[[int], int],
    keep: Keep = Keep.AS_READ,
) -> Started:
    """Load, measure, warm up, capture. num_pages_of(bytes): how many pages to make where so many bytes are free;
    keep: what projections are kept as.

    Raises ConfigError where the backend can't be had or memory is short.
    """
    seconds, began = dict[str, float](), time.perf_counter()

    def done(part: str) -> None:
        nonlocal began
        torch.cuda.synchronize()
        now = time.perf_counter()
        seconds[part], began = round(now - began, 3), now

    ops = _ops(config)
    done("kernels")
    decoder = Decoder(weights, model, ops, dtype, max_len=max_len, deterministic=config.deterministic, keep=keep)
    done("weights")
    kv = KvFormat.of(config.kv_dtype, dtype, is_amd=torch.version.hip is not None)

    def made(count: int) -> tuple[Tensor, KvScales | None]:
        where = (model, count, config.page_size, weights.device)
        return kv.pages(*where), kv.scales(*where)

    device, (one_page, its_scales) = CudaDevice(), made(1)
    how = {"exact_noise": config.deterministic}
    sizes = config.max_rows, max_len, config.tokens_a_step("cuda")
    runner = DeviceRunner(decoder, ops, device, one_page, *sizes, **how, kv_scales=its_scales)
    runner.rest()
    runner.run_largest()  # compiles; what it takes is measured once it is warm
    done("first step")
    memory = measured_memory(config.memory_share, runner.run_largest, lambda: runner.run(runner.largest))
    runner.kv, runner.kv_scales = made(num_pages_of(memory.pages))
    done("memory")
    with device.warming_up():
        runner.warm_up()
    done("warm-up")
    watch = CompileWatch()
    if ops.backend is Backend.TRITON:
        if config.graphs:
            device.capture(runner.shapes, runner.run)
        done("capture")
        watch.start()
    figures = {"start_s": seconds, "memory_bytes": asdict(memory), "graphs": device.num_graphs}
    return Started(decoder, ops, runner.kv, runner, max_len, watch, figures)


def _ops(config: EngineConfig) -> Ops:
    backend = Backend.TRITON if config.backend == "auto" else Backend(config.backend)
    if backend is Backend.C:
        raise ConfigError("backend c is for CPUs; on device cuda give --backend auto, triton or torch")
    try:
        return ops_for(backend)
    except KernelsUnavailable as error:
        raise ConfigError(f"backend {backend} can't be had here: {error}; give --backend torch") from None
