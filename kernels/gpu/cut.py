"""The least likely token that min-p, top-k and top-p leave of a row: see kernels/sample.py.

A row is walked by one program of 16 warps, which reads 16 bytes a thread and the next 16 beside the work on these;
sums stay in the threads until a walk ends. So they have one order, and a row's result depends on nothing but the row.
What is looked for is a logit of the row's dtype, by its `code`, its place among all values of the dtype: each walk
compares all tokens with three codes and leaves a quarter of the range. That is eight walks for all values of bf16 and
fp16, sixteen for fp32. top-p starts at the logit below which a whole vocabulary would not hold 1 - p, from where it is
four or five for bf16 logits above 0, and takes none where the likeliest token holds p alone. A walk before finds the
mass that p is of, a walk after what the likelier ones hold and how many are equal; only where those are parted is it
looked up which.

Goes out: the `key` of the least likely score, a score's bits without its sign, so that of scores up to 0 the likelier
has the smaller key; and the last id of that key. Different logits may have equal scores: both ends of a key are looked
for among the codes, without a walk.

Not known: where a GPU's time goes in it. The compiler puts a block's read near the end of the work on the block before.
"""

from __future__ import annotations

import triton
import triton.language as tl

CUT_WARPS = 16
CUT_LANES = 32 * CUT_WARPS  # threads of a program on NVIDIA


def cut_each(vocab: int, element_size: int) -> int:
    """Tokens that a thread reads at a time: 16 bytes, or 8 one by one where rows aren't aligned for that."""
    return (16 if vocab % 16 == 0 else 8) // element_size


@triton.jit
def winner(value, token_id, V):
    """(the greatest, the lowest id that has it); where all are NaN an id of the vocabulary."""
    greatest = tl.max(value, 0)
    return greatest, tl.minimum(tl.min(tl.where(value == greatest, token_id, 2147483647), 0), V - 1)


@triton.jit
def scores(logits, top, temperature):
    """(logit - top) / temperature: 0 at the top, whatever the temperature; fp32."""
    return tl.where(logits == top, 0.0, (logits - top) / temperature)


@triton.jit
def keys(score):
    """uint32: small for likely tokens, in the order of the scores, which are 0 or less."""
    return tl.abs(score).to(tl.uint32, bitcast=True)


@triton.jit
def _code(value, DTYPE: tl.constexpr):
    """The place of an fp32 number among the values of DTYPE, those below 0 below 0; rounded to one. An integer of twice
    the bits, so that sums of two fit."""
    if DTYPE.primitive_bitwidth == 16:
        bits = value.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32)
        return bits ^ ((bits >> 31) & 0x7FFF)
    else:
        bits = value.to(tl.int32, bitcast=True).to(tl.int64)
        return bits ^ ((bits >> 63) & 0x7FFFFFFF)


@triton.jit
def _value(code, DTYPE: tl.constexpr):
    """fp32: the number of DTYPE with that code."""
    if DTYPE.primitive_bitwidth == 16:
        bits = code ^ ((code >> 31) & 0x7FFF)
        return bits.to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
    else:
        bits = code ^ ((code >> 63) & 0x7FFFFFFF)
        return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _least(key, low, high, top, temperature, DTYPE: tl.constexpr):
    """The least code in low to high whose score has this key or a smaller one; else high."""
    while low < high:
        middle = (low + high) >> 1
        likely = keys(scores(_value(middle, DTYPE), top, temperature)) <= key
        low = tl.where(likely, low, middle + 1)
        high = tl.where(likely, middle, high)
    return high


@triton.jit
def _least_alike(code, key, top, temperature, DTYPE: tl.constexpr):
    """The least code of `key`, which is `code`'s: itself unless scores run together."""
    lowest = _code(tl.full([], float("-inf"), tl.float32), DTYPE)
    alike = (code > lowest) & (keys(scores(_value(code - 1, DTYPE), top, temperature)) == key)
    return _least(key, tl.where(alike, lowest, code), code, top, temperature, DTYPE)


@triton.jit
def _above(code, key, top, temperature, DTYPE: tl.constexpr):
    """The logit from which up scores are greater than that of `code`, whose key is `key`."""
    apart = keys(scores(_value(code + 1, DTYPE), top, temperature)) < key
    high = tl.where(apart, code + 1, _code(top, DTYPE))
    least = _least(key - 1, code + 1, high, top, temperature, DTYPE)
    return tl.where(key == 0, float("inf"), _value(least, DTYPE))


@triton.jit
def _weights(logits, top, rate):
    """exp(score); rate is log2 e / temperature, finite."""
    return tl.exp2((logits - top) * rate)


@triton.jit
def _read(row_ptr, start, V, LANES: tl.constexpr, EACH: tl.constexpr):
    """[LANES, EACH]: the next block of a row, EACH tokens a thread; -inf beyond its end."""
    token = start + tl.arange(0, LANES)[:, None] * EACH + tl.arange(0, EACH)[None, :]
    return tl.load(row_ptr + token, mask=token < V, other=float("-inf"))


@triton.jit
def _add_reached(block, first, second, third, one, two, three, top, rate, MASS: tl.constexpr):
    logit = block.to(tl.float32)
    weight = _weights(logit, top, rate) if MASS else tl.full(block.shape, 1.0, tl.float32)
    one += tl.sum(tl.where(logit >= first, weight, 0.0), 1)
    two += tl.sum(tl.where(logit >= second, weight, 0.0), 1)
    three += tl.sum(tl.where(logit >= third, weight, 0.0), 1)
    return one, two, three


@triton.jit
def _reached(row_ptr, first, second, third, top, rate, V, MASS: tl.constexpr, LANES: tl.constexpr, EACH: tl.constexpr):
    """The tokens, or if MASS what they hold, of logits from `first`, `second` and `third` up, all above -inf."""
    BLOCK: tl.constexpr = LANES * EACH
    one = tl.zeros([LANES], tl.float32)
    two = tl.zeros([LANES], tl.float32)
    three = tl.zeros([LANES], tl.float32)
    block = _read(row_ptr, 0, V, LANES, EACH)
    for start in tl.range(0, V, BLOCK):
        following = _read(row_ptr, start + BLOCK, V, LANES, EACH)
        one, two, three = _add_reached(block, first, second, third, one, two, three, top, rate, MASS)
        block = following
    return tl.sum(one, 0), tl.sum(two, 0), tl.sum(three, 0)


@triton.jit
def _search(row_ptr, low, high, target, top, rate, V, MASS: tl.constexpr, LANES: tl.constexpr, EACH: tl.constexpr):
    """The greatest code in low to high from which up there are `target` tokens, or if MASS that mass; else low."""
    DTYPE: tl.constexpr = row_ptr.dtype.element_ty
    while low < high:
        step = ((high - low) >> 2) + 1
        one, two, three = _reached(
            row_ptr, _value(low + step, DTYPE), _value(tl.minimum(low + 2 * step, high), DTYPE),
            _value(tl.minimum(low + 3 * step, high), DTYPE), top, rate, V, MASS, LANES, EACH,
        )  # fmt: skip
        met = (one >= target).to(low.dtype) + (two >= target).to(low.dtype) + (three >= target).to(low.dtype)
        high = tl.minimum(low + (met + 1) * step - 1, high)
        low = tl.minimum(low + met * step, high)
    return high


@triton.jit
def _mass(row_ptr, likely, floor, above, top, rate, V, LANES: tl.constexpr, EACH: tl.constexpr):
    """(what the tokens of logits from `likely` up hold, how many there are from `floor` up to below `above`)."""
    BLOCK: tl.constexpr = LANES * EACH
    held = tl.zeros([LANES], tl.float32)
    equal = tl.zeros([LANES], tl.int32)
    block = _read(row_ptr, 0, V, LANES, EACH)
    for start in tl.range(0, V, BLOCK):
        following = _read(row_ptr, start + BLOCK, V, LANES, EACH)
        logit = block.to(tl.float32)
        held += tl.sum(tl.where(logit >= likely, _weights(logit, top, rate), 0.0), 1)
        equal += tl.sum(((logit >= floor) & (logit < above)).to(tl.int32), 1)
        block = following
    return tl.sum(held, 0), tl.sum(equal, 0)


@triton.jit
def _last_of(row_ptr, floor, above, count, V, BLOCK: tl.constexpr):
    """The id of the count-th token with a logit from `floor` up to below `above`, ids upward."""
    seen = tl.full([], 0, tl.int32)
    last = tl.full([], 0, tl.int32)
    start = tl.full([], 0, tl.int32)
    while (seen < count) & (start < V):
        token = start + tl.arange(0, BLOCK)
        logit = tl.load(row_ptr + token, mask=token < V, other=float("nan")).to(tl.float32)
        equal = (logit >= floor) & (logit < above)
        rank = seen + tl.cumsum(equal.to(tl.int32), 0)
        last = tl.maximum(last, tl.max(tl.where(equal & (rank <= count), token, 0), 0))
        seen += tl.sum(equal.to(tl.int32), 0)
        start += BLOCK
    return last


@triton.jit
def _top_p(row_ptr, least, p, top, temperature, V, LANES: tl.constexpr, EACH: tl.constexpr):
    """(key, last id of it) of the fewest likeliest that hold p of what those from code `least` up do."""
    DTYPE: tl.constexpr = row_ptr.dtype.element_ty
    rate = tl.minimum(1.4426950408889634 / temperature, 3e38)
    total, tops = _mass(row_ptr, _value(least, DTYPE), top, float("inf"), top, rate, V, LANES, EACH)
    target = p * total
    unlikely = top - temperature * (tl.log(V / (1.0 - p)) + 1.0)  # a vocabulary of these holds less than 1 - p; 1: room
    high = _code(top, DTYPE)
    low = tl.minimum(tl.maximum(least, _code(unlikely, DTYPE) - 1), high)
    low = tl.where(tops.to(tl.float32) >= target, high, low)  # the likeliest are enough
    found = _search(row_ptr, low, high, target, top, rate, V, True, LANES, EACH)
    key = keys(scores(_value(found, DTYPE), top, temperature))
    last = V - 1 + tl.full([], 0, tl.int32)
    floor = _value(_least_alike(found, key, top, temperature, DTYPE), DTYPE)
    above = _above(found, key, top, temperature, DTYPE)
    likelier, equal = _mass(row_ptr, above, floor, above, top, rate, V, LANES, EACH)
    one = _weights(floor, top, rate)
    if (one > 0) & (likelier + equal * one > target):  # else all that are as likely as the last stay
        count = tl.maximum(tl.ceil((target - likelier) / one), 1.0).to(tl.int32)
        if count < equal:
            last = _last_of(row_ptr, floor, above, count, V, 2 * LANES)
    return key, last


@triton.jit(do_not_specialize=["blocks"])
def cut(
    logits_ptr,  # [R, V]
    values_ptr,  # [R, blocks] fp32
    ids_ptr,  # [R, blocks] int32
    tops_ptr,  # [R] fp32
    cuts_ptr,  # [R, 3] int32: key, last id of that key, 0
    temperature_ptr,  # [R] fp32
    top_k_ptr,  # [R] int64
    top_p_ptr,  # [R] fp32
    min_p_ptr,  # [R] fp32
    out_ptr,  # [R] int64
    row_stride,
    V,  # specialised: of a multiple of 16, 16 bytes are read at once
    blocks,
    BLOCKS: tl.constexpr,  # the power of 2 from blocks up
    LANES: tl.constexpr,
    EACH: tl.constexpr,  # tokens that a thread reads at a time
):
    """Grid (R,). Writes the greatest logit and, for a row of temperature 0, its id as the result; else the cut."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    inside = block < blocks
    value = tl.load(values_ptr + row * blocks + block, mask=inside, other=float("-inf"))
    token_id = tl.load(ids_ptr + row * blocks + block, mask=inside, other=2147483647)
    top, best = winner(value, token_id, V)
    tl.store(out_ptr + row, best.to(tl.int64))
    tl.store(tops_ptr + row, top)
    temperature = tl.load(temperature_ptr + row)
    if temperature > 0:
        row_ptr = logits_ptr + row * row_stride
        DTYPE: tl.constexpr = logits_ptr.dtype.element_ty
        k = tl.load(top_k_ptr + row)
        p = tl.load(top_p_ptr + row)
        floor = tl.log(tl.load(min_p_ptr + row).to(tl.float64)).to(tl.float32)  # log 0 is -inf: nothing is below it
        key = keys(floor)
        last = V - 1 + tl.full([], 0, tl.int32)
        high = _code(top, DTYPE)
        least = tl.minimum(_code(tl.full([], float("-inf"), tl.float32), DTYPE), high)
        if floor > float("-inf"):
            least = _least(key, least, high, top, temperature, DTYPE)
        if (k > 0) & (k < V):
            found = _search(row_ptr, least, high, k.to(tl.float32), top, top, V, False, LANES, EACH)
            key = tl.minimum(key, keys(scores(_value(found, DTYPE), top, temperature)))
            least = _least_alike(found, key, top, temperature, DTYPE)
        if p < 1.0:
            key, last = _top_p(row_ptr, least, p, top, temperature, V, LANES, EACH)
        tl.store(cuts_ptr + row * 3, key.to(tl.int32, bitcast=True))
        tl.store(cuts_ptr + row * 3 + 1, last)
        tl.store(cuts_ptr + row * 3 + 2, 0)
