"""Whether a model can run on the GPU that is here: asked before anything is loaded, answered in one line."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from worker.engine.config import ConfigError
from worker.engine.kv_format import FP8_CAPABILITY, KvFormat
from worker.models.config import ModelConfig

LEAST_CAPABILITY = (8, 0)  # what the kernels are compiled for; bf16 has matrix instructions from there on
FP8_AMD = (9, 4)  # as torch counts gfx942
_GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """The GPU that would be used. capability as NVIDIA counts it; is_amd: it means nothing there."""

    name: str
    capability: tuple[int, int]
    free_bytes: int
    total_bytes: int
    is_amd: bool = False


def find_gpu() -> Gpu:
    """The current GPU. Raises ConfigError if there is none, or none that this torch and driver can use: why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it would say is in the error
            torch.cuda.init()  # type: ignore[no-untyped-call]
            free, total = torch.cuda.mem_get_info()
            return Gpu(
                torch.cuda.get_device_name(),
                torch.cuda.get_device_capability(),
                free,
                total,
                is_amd=torch.version.hip is not None,
            )
    except (RuntimeError, AssertionError) as error:  # an old driver, no device; or a torch that was built without
        first = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise ConfigError(
            f"device cuda can't be had: {first} (torch {torch.__version__}); give --device cpu, or mend that"
        ) from None


def refuse_unfit(
    gpu: Gpu, model: ModelConfig, kv: KvFormat, page_size: int, weight_bytes: int, *, loading_bytes: int = 0
) -> None:
    """Raise ConfigError for what can't run on `gpu`: capability, head and page size, memory for the weights.

    loading_bytes: what packing them takes beside, at its most.
    """
    if not gpu.is_amd and gpu.capability < LEAST_CAPABILITY:
        raise ConfigError(
            f"device cuda: the kernels take compute capability {_dotted(LEAST_CAPABILITY)} or later; "
            f"{gpu.name} has {_dotted(gpu.capability)}: give --device cpu"
        )
    if not gpu.is_amd and kv.dtype == torch.float8_e4m3fn and gpu.capability < FP8_CAPABILITY:
        raise ConfigError(
            f"kv_dtype fp8 takes compute capability {_dotted(FP8_CAPABILITY)} or later; {gpu.name} has "
            f"{_dotted(gpu.capability)}: give --kv-dtype int8"
        )
    D = model.head_dim
    if D % 16 or D > 256:
        raise ConfigError(f"device cuda: the kernels take heads of 16 to 256 elements in multiples of 16; got {D}")
    if page_size % 16:
        raise ConfigError(f"page_size must be a multiple of 16 on a GPU; got {page_size}")
    page = kv.page_bytes(model, page_size)
    if weight_bytes + max(page, loading_bytes) > gpu.free_bytes:
        packing = f" (and {loading_bytes / _GIB:.1f} while they are packed)" if loading_bytes else ""
        raise ConfigError(
            f"the model does not fit: its weights take {weight_bytes / _GIB:.1f} GiB{packing} and a page of K/V "
            f"{page / (1 << 20):.1f} MiB, {gpu.name} has {gpu.free_bytes / _GIB:.1f} GiB free of "
            f"{gpu.total_bytes / _GIB:.1f}"
        )


def refuse_fp8_products(gpu: Gpu, dtype: torch.dtype) -> None:
    """Raise ConfigError if `gpu` can't multiply FP8 weights, or not with activations of this dtype."""
    if gpu.is_amd and gpu.capability != FP8_AMD:
        raise ConfigError(
            f"FP8 weights take an AMD GPU of the architecture gfx942; {gpu.name} is none: give --weights int8, or "
            f"another checkpoint if this one is fp8"
        )
    if not gpu.is_amd and gpu.capability < FP8_CAPABILITY:
        raise ConfigError(
            f"FP8 weights take compute capability {_dotted(FP8_CAPABILITY)} or later; {gpu.name} has "
            f"{_dotted(gpu.capability)}: give --weights int8, or another checkpoint if this one is fp8"
        )
    if dtype != torch.bfloat16:
        raise ConfigError(f"FP8 weights take dtype bfloat16, got {str(dtype)[6:]}; give --dtype bfloat16")


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
