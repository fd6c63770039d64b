"""The table's operations in C, for fp32 and bf16 on a CPU. Same signatures as their torch references, checked here.

Rows and heads must be whole vectors of 16; `fits` says so before anything is loaded.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kernels.adjust_logits import Penalties, adjust_logits_torch
from kernels.cpu.batch import prepare_batch_in_c
from kernels.cpu.library import load
from kernels.cpu.pages import expect_pages
from kernels.kv_scales import KvScales
from kernels.prepare_batch import FlatBatch

LANES = 16


def fits(dtype: torch.dtype, sizes: tuple[int, ...]) -> str | None:
    """Why a model can't run on the C kernels, or None. sizes: the widths of its rows, heads last."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"the C kernels take float32 and bfloat16, not {dtype}"
    odd = [size for size in sizes if size % LANES]
    if odd or sizes[-1] > 256:
        return f"the C kernels take sizes that are multiples of {LANES} and heads up to 256; got {sizes}"
    return None


class CpuOps:
    """One element type's kernels."""

    def __init__(self, dtype: torch.dtype) -> None:
        """Raises CpuKernelsUnavailable."""
        self.dtype = dtype
        element = str(dtype).removeprefix("torch.")
        library = load(element)
        self.prepare_batch = prepare_batch_in_c(element)
        pointer, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        self._attention, self._attention_codes = library.attention, library.attention_codes
        for attention in (self._attention, self._attention_codes):
            attention.argtypes = [pointer] * 7 + [integer] * 7 + [real, real, integer]
        self._rms_norm = library.rms_norm
        self._rms_norm.argtypes = [pointer] * 4 + [integer] * 2 + [real]
        self._silu_mul = library.silu_mul
        self._silu_mul.argtypes = [pointer] * 2 + [integer] * 2
        self._norm_rope_write = library.norm_rope_write
        self._norm_rope_write.argtypes = [pointer] * 9 + [integer] * 5 + [real]
        self._draw, self._draw_floats = library.draw, library.draw_floats
        self._draw.argtypes = self._draw_floats.argtypes = [pointer] * 8 + [integer] * 3
        self._adjust_logits = library.adjust_logits
        self._adjust_logits.argtypes = [pointer] * 8 + [integer] * 2
        self._token_logprobs = library.token_logprobs
        self._token_logprobs.argtypes = [pointer] * 3 + [integer] * 3
        self._adjust_logits.restype = self._token_logprobs.restype = None
        for function in (self._rms_norm, self._silu_mul, self._norm_rope_write, self._draw, self._draw_floats):
            function.restype = None

    def _expect(self, *tensors: Tensor) -> None:
        """C sees a bare pointer: what lies there has to be of its element type, and in one piece."""
        for tensor in tensors:
            assert tensor.dtype == self.dtype, f"kernels for {self.dtype} were given {tensor.dtype}"
            assert tensor.is_contiguous(), f"a tensor of shape {tuple(tensor.shape)} is not contiguous"

    def _expect_out(self, out: Tensor, shape: tuple[int, ...]) -> None:
        self._expect(out)
        assert out.shape == shape, f"out has shape {tuple(out.shape)}, the result {tuple(shape)}"

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, /, residual: Tensor | None = None, *, out: Tensor | None = None
    ) -> Tensor:
        """See RmsNorm."""
        x = x.contiguous()
        self._expect(x, weight)
        if out is None:
            out = torch.empty_like(x)
        else:
            self._expect_out(out, x.shape)
        shared = None if residual is None else residual.data_ptr()
        self._rms_norm(x.data_ptr(), shared, weight.data_ptr(), out.data_ptr(), x.shape[0], x.shape[1], eps)
        return out

    def silu_mul(self, gate_up: Tensor, /, *, out: Tensor | None = None) -> Tensor:
        """See SiluMul."""
        self._expect(gate_up)
        rows, width = gate_up.shape
        if out is None:
            out = torch.empty(rows, width // 2, dtype=gate_up.dtype)
        else:
            self._expect_out(out, (rows, width // 2))
        self._silu_mul(gate_up.data_ptr(), out.data_ptr(), rows, width // 2)
        return out

    def norm_rope_write(
        self,
        qkv: Tensor,
        kv: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        cos_sin: Tensor,
        /,
        *,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 0.0,
        kv_scales: KvScales | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """See NormRopeWrite."""
        self._expect(qkv)
        expect_pages(kv, kv_scales, self.dtype)
        _, _, kv_heads, page_size, D = kv.shape
        heads = qkv.shape[1] // D - 2 * kv_heads
        if out is None:
            q = torch.empty(qkv.shape[0], heads, D, dtype=qkv.dtype)
        else:
            q = out
            self._expect_out(q, (qkv.shape[0], heads, D))
        self._norm_rope_write(
            qkv.data_ptr(),
            kv.data_ptr(),
            _scales(kv_scales),
            positions.data_ptr(),
            slot_mapping.data_ptr(),
            cos_sin.data_ptr(),
            None if q_norm is None else q_norm.data_ptr(),
            None if k_norm is None else k_norm.data_ptr(),
            q.data_ptr(),
            qkv.shape[0],
            heads,
            kv_heads,
            page_size,
            D,
            eps,
        )
        return q

    def sample(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        seed: Tensor,
        offset: Tensor,
        /,
        *,
        banned: tuple[Tensor, Tensor] | None = None,
        exact_noise: bool = False,
        out: Tensor | None = None,
        workspace: Tensor | None = None,
    ) -> Tensor:
        """See Sample. The noise is exact in any case: a row is one thread's, in one order. Takes fp32 logits too."""
        if banned is not None:
            logits = logits.index_put(banned, torch.tensor(float("-inf"), dtype=logits.dtype))
        draw = self._draw
        if logits.dtype == torch.float32 and logits.is_contiguous():  # adjusted ones, whatever the elements are
            draw = self._draw_floats
        else:
            self._expect(logits)
        R, V = logits.shape
        ids = torch.empty(R, dtype=torch.int64) if out is None else out
        for each in (temperature, top_p, min_p):
            assert (each.dtype, each.numel()) == (torch.float32, R)
        for each in (top_k, seed, offset, ids):
            assert (each.dtype, each.numel()) == (torch.int64, R)
        each_row = (temperature, top_k, top_p, min_p, seed, offset)
        held = [column.contiguous() for column in each_row]
        assert ids.is_contiguous()
        warm = bool(temperature.any())
        draw(logits.data_ptr(), *(column.data_ptr() for column in held), ids.data_ptr(), R, V, warm)
        return ids

    def adjust_logits(
        self,
        logits: Tensor,
        /,
        *,
        bias: tuple[Tensor, Tensor, Tensor] | None = None,
        allowed: Tensor | None = None,
        penalties: Penalties | None = None,
    ) -> Tensor:
        """See AdjustLogits. In C for fp32, which is what the engine adjusts."""
        if logits.dtype != torch.float32 or not logits.is_contiguous() or (allowed is None and penalties is None):
            return adjust_logits_torch(logits, bias=bias, allowed=allowed, penalties=penalties)
        adjust_logits_torch(logits, bias=bias)
        p = penalties
        history = () if p is None else (p.rows, p.in_prompt, p.counts, p.repetition, p.presence, p.frequency)
        for tensor in (*history, *(() if allowed is None else (allowed,))):
            assert tensor.is_contiguous(), f"a tensor of shape {tuple(tensor.shape)} is not contiguous"
        self._adjust_logits(
            logits.data_ptr(),
            None if allowed is None else allowed.data_ptr(),
            *([None] * 6 if p is None else (tensor.data_ptr() for tensor in history)),
            *logits.shape,
        )
        return logits

    def token_logprobs(self, logits: Tensor, ids: Tensor, /) -> Tensor:
        """See TokenLogprobs."""
        self._expect(logits)
        ids = ids.contiguous()
        logprobs = torch.empty(ids.shape, dtype=torch.float32)
        self._token_logprobs(logits.data_ptr(), ids.data_ptr(), logprobs.data_ptr(), *logits.shape, ids.shape[1])
        return logprobs

    def attention_workspace(
        self, batch: FlatBatch, kv_shape: tuple[int, ...], heads: int, /, *, deterministic: bool, out: Any = None
    ) -> FlatBatch:
        """See AttentionWorkspace: the batch with its tensors contiguous. There is one order, the fixed one."""
        return replace(batch, page_table=batch.page_table.contiguous())

    def decode_attention(
        self, q: Tensor, kv: Tensor, batch: FlatBatch, workspace: Any, out: Tensor, /, **how: Any
    ) -> None:
        """See Attention."""
        self._attend(q, kv, workspace, out, 0, workspace.num_decode, **how)

    def prefill_attention(
        self, q: Tensor, kv: Tensor, batch: FlatBatch, workspace: Any, out: Tensor, /, **how: Any
    ) -> None:
        """See Attention."""
        self._attend(q, kv, workspace, out, workspace.num_decode, len(workspace.seq_lens), **how)

    def _attend(
        self,
        q: Tensor,
        kv: Tensor,
        batch: FlatBatch,
        out: Tensor,
        first_row: int,
        last_row: int,
        *,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
        kv_scales: KvScales | None = None,
    ) -> None:
        self._expect(q, out)
        expect_pages(kv, kv_scales, self.dtype)
        _, _, kv_heads, page_size, D = kv.shape
        attention = self._attention if kv_scales is None else self._attention_codes
        failed = attention(
            q.data_ptr(),
            kv.data_ptr(),
            _scales(kv_scales),
            batch.query_start.data_ptr(),
            batch.seq_lens.data_ptr(),
            batch.page_table.data_ptr(),
            out.data_ptr(),
            first_row,
            last_row,
            batch.page_table.shape[1],
            q.shape[1],
            kv_heads,
            page_size,
            D,
            scale,
            soft_cap or 0.0,
            window or 0,
        )
        if failed:
            raise MemoryError("attention: no memory for its work list")


def _scales(kv_scales: KvScales | None) -> int | None:
    """Where they lie, expect_pages having seen them."""
    return kv_scales.data_ptr() if isinstance(kv_scales, Tensor) else None
