"""Products with weights of fewer bits than the model's dtype, as Linear does them: which operation of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from kernels.fp8_linear import Fp8Linear, Fp8Weight
from kernels.plain_linear import PlainLinear
from kernels.quantised_linear import QuantisedLinear, QuantisedWeight

NarrowWeight = QuantisedWeight | Fp8Weight
Weight = Tensor | NarrowWeight
"""Of a product: [N, K] in the model's dtype, or of fewer bits in its kernel's own layout."""


class Products(Protocol):
    """The operations of a table (kernels/table.py) that multiply with weights."""

    @property
    def plain_linear(self) -> PlainLinear: ...

    @property
    def quantised_linear(self) -> QuantisedLinear: ...

    @property
    def fp8_linear(self) -> Fp8Linear: ...


def narrow_product(
    weight: NarrowWeight, products: Products, *, fixed: bool
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """product(x, bias) -> a new tensor. fixed: a row's bits do not depend on how many rows there are."""
    if isinstance(weight, QuantisedWeight):
        quantised = weight
        return lambda x, bias: products.quantised_linear(x, quantised, bias, fixed=fixed)
    fp8 = weight
    return lambda x, bias: products.fp8_linear(x, fp8, bias, fixed=fixed)


def side_by_side(parts: Sequence[Weight]) -> Weight:
    """The outputs of all parts as one weight. Raises ValueError if they are not of one kind."""
    if len(parts) == 1:
        return parts[0]
    plain = [part for part in parts if isinstance(part, Tensor)]
    quantised = [part for part in parts if isinstance(part, QuantisedWeight)]
    fp8 = [part for part in parts if isinstance(part, Fp8Weight)]
    if len(plain) == len(parts):
        return torch.cat(plain)
    if len(quantised) == len(parts):
        return QuantisedWeight.beside(quantised)
    if len(fp8) == len(parts):
        return Fp8Weight.beside(fp8)
    raise ValueError("some are quantised and some are not")
