"""Products with weights stored as int8 in C (product_int8.c), for CPUs with AVX512-VNNI.

A weight takes half the bytes of bf16, and activations are rounded to int8 too, because the CPU multiplies bytes at
twice the rate of bf16 pairs. What that costs in accuracy and gives in speed is in ops/bench/LOG.md.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from functools import cache

import torch
from torch import Tensor

from kernels.cpu.large_pages import use_large_pages
from kernels.cpu.library import CpuKernelsUnavailable, load

_MULTIPLE = 16  # of inputs


def int8_refused_in_c(dtype: torch.dtype, inputs: Collection[int]) -> str | None:
    """Why weights of a model in this dtype, with so many inputs each, have no int8 product in C here, or None."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"products with int8 weights are for float32 and bfloat16, not for {dtype}"
    try:
        library = int8_library(dtype)
    except CpuKernelsUnavailable as error:
        return str(error)
    if library is None:
        return "this CPU has no AVX512-VNNI"
    odd = [size for size in inputs if size % _MULTIPLE]
    return f"products with int8 weights take inputs in multiples of {_MULTIPLE}; got {odd[0]}" if odd else None


class Int8Weight:
    """A weight [N, K] as codes in C's own layout and scales [N, or a few more] fp32; the plain tensor is not kept."""

    def __init__(self, weight: Tensor) -> None:
        """int8_refused_in_c has been asked."""
        library = int8_library(weight.dtype)
        assert library is not None
        self._product, self.dtype = library.int8_product, weight.dtype
        self.out_features, self.in_features = N, K = weight.shape
        assert K % _MULTIPLE == 0, f"{K} inputs"
        self.packed = torch.empty(library.int8_packed_bytes(N, K), dtype=torch.uint8)
        self.scales = torch.empty(library.int8_scales(N), dtype=torch.float32)
        use_large_pages(self.packed)
        library.pack_int8_weight(weight.contiguous().data_ptr(), self.packed.data_ptr(), self.scales.data_ptr(), N, K)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [T, K] model dtype, bias [N] model dtype or None -> [T, N], a new tensor."""
        assert x.dtype == self.dtype, f"a product of {self.dtype} was given {x.dtype}"
        assert x.is_contiguous(), f"a tensor of shape {tuple(x.shape)} is not contiguous"
        assert x.shape[1] == self.in_features, f"expected {self.in_features} columns, got {x.shape[1]}"
        rows = x.shape[0]
        out = torch.empty(rows, self.out_features, dtype=x.dtype)
        failed = self._product(
            x.data_ptr(),
            self.packed.data_ptr(),
            self.scales.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            rows,
            self.out_features,
            self.in_features,
        )
        if failed:
            raise MemoryError(f"int8 product: no memory for {rows} rows of {self.in_features} codes")
        return out


@cache
def int8_library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The library for that dtype where it has int8 products, else None. Raises CpuKernelsUnavailable."""
    library = load(str(dtype).removeprefix("torch."))
    if not library.has_int8_product():
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.int8_packed_bytes.argtypes, library.int8_packed_bytes.restype = [integer] * 2, integer
    library.int8_scales.argtypes, library.int8_scales.restype = [integer], integer
    library.pack_int8_weight.argtypes, library.pack_int8_weight.restype = [pointer] * 3 + [integer] * 2, None
    library.int8_product.argtypes, library.int8_product.restype = [pointer] * 5 + [integer] * 3, ctypes.c_int
    return library
