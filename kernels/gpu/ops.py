"""The table's operations in Triton: on a GPU, or in Triton's interpreter where TRITON_INTERPRET=1 asks for it."""

from __future__ import annotations

from typing import Any

import torch

from kernels.errors import KernelsUnavailable

try:
    import triton
except ImportError as error:
    raise KernelsUnavailable(f"the Triton kernels need the package triton ({error}): install it") from None

from kernels.gpu.adjust_logits import adjust_logits
from kernels.gpu.append_tokens import append_tokens
from kernels.gpu.decode_attention import attention_workspace, decode_attention
from kernels.gpu.fp8_linear import fp8_linear
from kernels.gpu.gather_rms_norm import gather_rms_norm
from kernels.gpu.norm_rope_write import norm_rope_write
from kernels.gpu.plain_linear import plain_linear
from kernels.gpu.prefill_attention import prefill_attention
from kernels.gpu.prepare_batch import prepare_batch
from kernels.gpu.quantised_linear import quantised_linear
from kernels.gpu.rms_norm import rms_norm
from kernels.gpu.sample import sample
from kernels.gpu.sampling_inputs import sampling_inputs
from kernels.gpu.silu_mul import gelu_mul, silu_mul
from kernels.gpu.token_logprobs import token_logprobs
from kernels.gpu.write_spans import write_spans


def gpu_ops() -> dict[str, Any]:
    """The operations by their names in the table. Raises KernelsUnavailable."""
    if triton.knobs.runtime.interpret:
        from kernels.gpu.interpreter import make_exact

        make_exact()
    elif not torch.cuda.is_available():
        raise KernelsUnavailable(
            "the Triton kernels need a CUDA or ROCm GPU, and torch sees none (TRITON_INTERPRET=1 runs them, slowly, in "
            "Triton's interpreter)"
        )
    return {
        "gather_rms_norm": gather_rms_norm,
        "rms_norm": rms_norm,
        "norm_rope_write": norm_rope_write,
        "attention_workspace": attention_workspace,
        "decode_attention": decode_attention,
        "prefill_attention": prefill_attention,
        "write_spans": write_spans,
        "prepare_batch": prepare_batch,
        "sampling_inputs": sampling_inputs,
        "sample": sample,
        "append_tokens": append_tokens,
        "adjust_logits": adjust_logits,
        "token_logprobs": token_logprobs,
        "plain_linear": plain_linear,
        "quantised_linear": quantised_linear,
        "fp8_linear": fp8_linear,
        "silu_mul": silu_mul,
        "gelu_mul": gelu_mul,
    }
