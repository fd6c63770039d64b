"""Linear: y = x W^T + b. Owns its weight; packing and quantisation live here, and adapters and sharding will.

A weight of fewer bits (kernels/narrow_linear.py) is multiplied as it is, by the operation that the table has for it.

On a CPU the weight is packed once at load: for C's own product where there is one (kernels/cpu/product.py), else into
oneDNN's layout, which at one row of bf16 reads the memory 2.4 times as fast as the plain product, at 64 rows 1.2 times.
Packed products give a row the same bits among 2 or 2,048 rows (for oneDNN measured with bf16 and fp32, also where the
plain fp32 product differs under 8 rows); alone oneDNN's may not, so where bits count the caller pads a lone row.

A GPU's library picks its product by the number of rows, so where bits count the table's product is asked for the fixed
order.

oneDNN compiles each shape of a product when it first meets it (1 ms) and remembers about a thousand: callers keep the
number of rows to a short ladder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from kernels.cpu.product import PackedWeight, has_product
from kernels.cpu.product_int8 import Int8Weight, int8_refused_in_c
from kernels.narrow_linear import Products, Weight, narrow_product
from kernels.plain_linear import plain_linear_torch

_PACK_ROWS = 64  # the width that packing is tuned for; any width works


class Linear:
    """A linear layer for inference.

    weight [N, K], bias [N] or None, both model dtype. The weight is taken over: after packing the plain tensor is
    released, and nothing but this object knows its layout. Products are those of a table, torch's if none is given; a
    weight of fewer bits needs one.

    weights: how a plain weight is stored, auto (in its own dtype) or int8 (codes with a scale for each output, made
    here; the caller has asked int8_refused).

    Raises ValueError if `deterministic` and this dtype has no product whose rows are independent of each other here.
    """

    def __init__(
        self,
        weight: Weight,
        bias: Tensor | None = None,
        *,
        deterministic: bool = False,
        weights: str = "auto",
        products: Products | None = None,
    ) -> None:
        self.bias = bias
        self._plain_linear = plain_linear_torch if products is None else products.plain_linear
        self._deterministic = deterministic
        self._plain: Tensor | None = None
        self._packed: Tensor | None = None
        self.in_c: PackedWeight | Int8Weight | None = None
        self._narrow: Callable[[Tensor, Tensor | None], Tensor] | None = None
        if not isinstance(weight, Tensor):
            assert products is not None, "a weight of fewer bits takes a table's products"
            self.out_features, self.in_features = weight.out_features, weight.in_features
            self._narrow = narrow_product(weight, products, fixed=deterministic)
            return
        self.out_features, self.in_features = weight.shape
        self._plain = weight
        if weights == "int8":
            self.in_c = Int8Weight(weight)
            self._plain = None
        elif has_product(weight):
            self.in_c = PackedWeight(weight)
            self._plain = None
        elif can_pack(weight.device, weight.dtype):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)
            self._plain = None
        elif deterministic and weight.device.type == "cpu":
            raise ValueError(
                f"deterministic mode on this CPU takes bfloat16 or float32 weights that oneDNN can pack; "
                f"got {weight.dtype}: choose another --dtype"
            )

    def __call__(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """x [T, K] model dtype, contiguous -> [T, N]: `out`, or a new tensor."""
        if out is None:
            return self._product(x)
        if self._plain is not None:
            return self._plain_linear(x, self._plain, self.bias, out=out, fixed=self._deterministic)
        return out.copy_(self._product(x))

    def _product(self, x: Tensor) -> Tensor:
        if self._narrow is not None:
            return self._narrow(x, self.bias)
        if self.in_c is not None:
            return self.in_c(x, self.bias)
        if self._packed is None:
            assert self._plain is not None
            return self._plain_linear(x, self._plain, self.bias, fixed=self._deterministic)
        assert not (self._deterministic and x.shape[0] == 1), "a lone row's bits differ: pad it"
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out


def int8_refused(device: torch.device, dtype: torch.dtype, inputs: Collection[int]) -> str | None:
    """Why weights of a model in this dtype, with so many inputs, can't be stored as int8 on this device, or None."""
    if device.type != "cpu":
        return f"there is no product with int8 weights on {device.type} yet"
    return int8_refused_in_c(dtype, inputs)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this dtype here."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
