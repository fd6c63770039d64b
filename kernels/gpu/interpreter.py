"""Triton's interpreter, made to round as GPUs do. Kernels need no branch for it.

As it comes (3.6 and 3.9) it multiplies the codes of bf16 numbers in a dot, cuts fp32 to bf16 instead of rounding, and
loses a carry on the way to fp8. Here casts and dots of these types go through torch, which rounds to the nearest even;
fp8 saturates, as the hardware's conversion does. Other arithmetic on them is refused: the kernels here compute in fp32.

It can't show races, missing barriers, what pipelining breaks, tf32, or how fast anything is.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_NARROW = {  # as Triton's interpreter stores them: codes in unsigned integers
    "bf16": (torch.bfloat16, np.uint16, torch.int16),
    "fp8e4nv": (torch.float8_e4m3fn, np.uint8, torch.uint8),
    "fp8e5": (torch.float8_e5m2, np.uint8, torch.uint8),
    "fp8e4b8": (torch.float8_e4m3fnuz, np.uint8, torch.uint8),
}


@cache
def make_exact() -> None:
    """Replace the interpreter's casts and dots, once a process."""
    builder = interpreter.InterpreterBuilder
    plain_cast, plain_convert = builder.cast_impl, builder.create_fp_to_fp
    plain_binary, plain_unary = builder.binary_op, builder.unary_op

    def cast(self: Any, source: Any, target: Any) -> Any:
        if _is_narrow(source.dtype) or _is_narrow(target):
            return _encoded(_decoded(source), target.scalar)
        return plain_cast(self, source, target)

    def convert(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if _is_narrow(source.dtype) or _is_narrow(target):
            return _encoded(_decoded(source), target.scalar)
        return plain_convert(self, source, target, rounding)

    def dot(self: Any, a: Any, b: Any, total: Any, precision: Any, imprecise: Any) -> Any:
        wide = total.data.dtype
        product = np.matmul(_decoded(a).astype(wide), _decoded(b).astype(wide), dtype=wide)
        return interpreter.TensorHandle(product + total.data, total.dtype.scalar)

    def binary(self: Any, left: Any, right: Any, operation: Any) -> Any:
        _refuse(left, right)
        return plain_binary(self, left, right, operation)

    def unary(self: Any, value: Any, operation: Any) -> Any:
        _refuse(value)
        return plain_unary(self, value, operation)

    builder.cast_impl, builder.create_fp_to_fp, builder.create_dot = cast, convert, dot
    builder.binary_op, builder.unary_op = binary, unary


def _is_narrow(dtype: tl.dtype) -> bool:
    return str(dtype.scalar) in _NARROW


def _refuse(*values: Any) -> None:
    for value in values:
        assert not _is_narrow(value.dtype), f"arithmetic on {value.dtype.scalar}: cast to float32 first"


def _decoded(handle: Any) -> np.ndarray[Any, Any]:
    """The numbers that a handle's codes stand for, in fp32; of other types its own numbers."""
    if not _is_narrow(handle.dtype):
        numbers: np.ndarray[Any, Any] = handle.data
        return numbers
    dtype, _, code = _NARROW[str(handle.dtype.scalar)]
    codes = torch.from_numpy(np.array(handle.data).view(np.int16 if code == torch.int16 else np.uint8))
    return codes.view(dtype).float().numpy()


def _encoded(numbers: np.ndarray[Any, Any], target: Any) -> Any:
    """A handle of type `target`, rounded to the nearest even."""
    if not _is_narrow(target):
        return interpreter.TensorHandle(numbers.astype(interpreter._get_np_dtype(target)), target)
    dtype, stored, code = _NARROW[str(target)]
    wide = torch.from_numpy(np.array(numbers, dtype=np.float32))
    if dtype != torch.bfloat16:
        greatest = torch.finfo(dtype).max
        wide = torch.where(wide.isnan(), wide, wide.clamp(-greatest, greatest))
    return interpreter.TensorHandle(wide.to(dtype).view(code).numpy().view(stored), target)
