"""The table of operations: a backend is chosen once, and the engine calls what the table holds.

`torch` runs everywhere, on the device of its inputs, and is the truth that every other backend is checked against; `c`
is for CPUs with a compiler, `triton` for GPUs (and, to be checked without one, Triton's interpreter). Where a backend
has nothing to gain its table lists torch's operation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import torch

from kernels.adjust_logits import AdjustLogits, adjust_logits_torch
from kernels.append_tokens import AppendTokens, append_tokens_torch
from kernels.cpu.forward import whole_pass_in_c
from kernels.cpu.ops import CpuOps, fits
from kernels.errors import KernelsUnavailable
from kernels.fp8_linear import Fp8Linear, fp8_linear_torch
from kernels.gather_rms_norm import GatherRmsNorm, gather_rms_norm_torch, gathered
from kernels.gelu_mul import GeluMul, gelu_mul_torch
from kernels.norm_rope_write import NormRopeWrite, norm_rope_write_torch
from kernels.paged_attention import (
    Attention,
    AttentionWorkspace,
    attention_workspace_torch,
    decode_attention_torch,
    prefill_attention_torch,
)
from kernels.plain_linear import PlainLinear, plain_linear_torch
from kernels.prepare_batch import PrepareBatch, prepare_batch_torch
from kernels.quantised_linear import QuantisedLinear, quantised_linear_torch
from kernels.rms_norm import RmsNorm, rms_norm_torch
from kernels.sample import Sample, sample_torch
from kernels.sampling_inputs import SamplingInputs, sampling_inputs_torch
from kernels.silu_mul import SiluMul, silu_mul_torch
from kernels.token_logprobs import TokenLogprobs, token_logprobs_torch
from kernels.whole_pass import WholePassOf, no_whole_pass
from kernels.write_spans import WriteSpans, write_spans_torch


class Backend(StrEnum):
    """Where the operations run."""

    TORCH = "torch"
    C = "c"
    TRITON = "triton"


@dataclass(frozen=True)
class Ops:
    """One implementation of each operation, all of one backend. Signatures: the Protocol in each op's file."""

    backend: Backend
    write_spans: WriteSpans
    prepare_batch: PrepareBatch
    gather_rms_norm: GatherRmsNorm
    rms_norm: RmsNorm
    norm_rope_write: NormRopeWrite
    attention_workspace: AttentionWorkspace
    decode_attention: Attention
    prefill_attention: Attention
    plain_linear: PlainLinear
    quantised_linear: QuantisedLinear
    fp8_linear: Fp8Linear
    silu_mul: SiluMul
    gelu_mul: GeluMul
    sampling_inputs: SamplingInputs
    sample: Sample
    append_tokens: AppendTokens
    adjust_logits: AdjustLogits
    token_logprobs: TokenLogprobs
    whole_pass_of: WholePassOf


_TORCH = Ops(
    backend=Backend.TORCH,
    write_spans=write_spans_torch,
    prepare_batch=prepare_batch_torch,
    gather_rms_norm=gather_rms_norm_torch,
    rms_norm=rms_norm_torch,
    norm_rope_write=norm_rope_write_torch,
    attention_workspace=attention_workspace_torch,
    decode_attention=decode_attention_torch,
    prefill_attention=prefill_attention_torch,
    plain_linear=plain_linear_torch,
    quantised_linear=quantised_linear_torch,
    fp8_linear=fp8_linear_torch,
    silu_mul=silu_mul_torch,
    gelu_mul=gelu_mul_torch,
    sampling_inputs=sampling_inputs_torch,
    sample=sample_torch,
    append_tokens=append_tokens_torch,
    adjust_logits=adjust_logits_torch,
    token_logprobs=token_logprobs_torch,
    whole_pass_of=no_whole_pass,
)


def ops_for(backend: Backend, dtype: torch.dtype = torch.float32) -> Ops:
    """The table of `backend` for tensors of `dtype`. Raises KernelsUnavailable if it can't be had here."""
    if backend is Backend.TORCH:
        return _TORCH
    if backend is Backend.TRITON:
        from kernels.gpu.ops import gpu_ops  # a CPU worker's start does without triton

        return replace(_TORCH, backend=backend, **gpu_ops())
    c = CpuOps(dtype)
    return replace(
        _TORCH,
        backend=Backend.C,
        prepare_batch=c.prepare_batch,
        gather_rms_norm=gathered(c.rms_norm),
        rms_norm=c.rms_norm,
        norm_rope_write=c.norm_rope_write,
        attention_workspace=c.attention_workspace,
        decode_attention=c.decode_attention,
        prefill_attention=c.prefill_attention,
        silu_mul=c.silu_mul,
        sample=c.sample,
        adjust_logits=c.adjust_logits,
        token_logprobs=c.token_logprobs,
        whole_pass_of=whole_pass_in_c,
    )


def best_ops(dtype: torch.dtype, sizes: tuple[int, ...]) -> tuple[Ops, str | None]:
    """The fastest table for a model on this machine, and why it is not a faster one (None: it is the fastest).

    sizes: the widths of the model's rows, heads last.
    """
    odd = fits(dtype, sizes)
    if odd is not None:
        return _TORCH, odd
    try:
        return ops_for(Backend.C, dtype), None
    except KernelsUnavailable as error:
        return _TORCH, str(error)
