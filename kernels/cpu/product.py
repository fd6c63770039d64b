"""Products with a packed bf16 weight in C (product.c), for CPUs that multiply bf16 pairs and have no tiles for it.

Against oneDNN's packed products on such a CPU: two to three times as fast where the weight is small and the rows are
few, since a call costs 2 µs and not 20; never slower; nothing is compiled for a new number of rows; and an output's
bits do not depend on how many rows there are, not even for a lone one.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from kernels.cpu.large_pages import use_large_pages
from kernels.cpu.library import CpuKernelsUnavailable, load


def has_product(weight: Tensor) -> bool:
    """Whether products with this weight [N, K] can be done in C here."""
    fits = weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and weight.shape[1] % 2 == 0
    return fits and product_library() is not None


class PackedWeight:
    """A weight [N, K] bf16 in C's own layout; the plain tensor is not kept."""

    def __init__(self, weight: Tensor) -> None:
        """has_product(weight) has been asked."""
        library = product_library()
        assert library is not None
        self._product = library.product
        self.out_features, self.in_features = N, K = weight.shape
        self.packed = torch.empty(library.packed_elements(N, K), dtype=torch.bfloat16)
        use_large_pages(self.packed)
        library.pack_weight(weight.contiguous().data_ptr(), self.packed.data_ptr(), N, K)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [T, K] bf16, bias [N] bf16 or None -> [T, N] bf16, a new tensor."""
        assert x.dtype == torch.bfloat16, f"a bf16 product was given {x.dtype}"
        assert x.is_contiguous(), f"a tensor of shape {tuple(x.shape)} is not contiguous"
        assert x.shape[1] == self.in_features, f"expected {self.in_features} columns, got {x.shape[1]}"
        rows = x.shape[0]
        out = torch.empty(rows, self.out_features, dtype=torch.bfloat16)
        self._product(
            x.data_ptr(),
            self.packed.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            rows,
            self.out_features,
            self.in_features,
        )
        return out


@cache
def product_library() -> ctypes.CDLL | None:
    """The bf16 library where it has products, else None: oneDNN does them then."""
    try:
        library = load("bfloat16")
    except CpuKernelsUnavailable:
        return None
    if not library.has_product():
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.packed_elements.argtypes, library.packed_elements.restype = [integer] * 2, integer
    library.pack_weight.argtypes, library.pack_weight.restype = [pointer] * 2 + [integer] * 2, None
    library.product.argtypes, library.product.restype = [pointer] * 4 + [integer] * 3, None
    return library
