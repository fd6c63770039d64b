"""What must hold of a compiled kernel."""

from __future__ import annotations

from ops.aot.compiled import Compiled

SHARED_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
"""Most of one program. sm_80's row serves sm_86 and sm_89 too, which have 99 KiB: see SMALL."""
SMALL_SHARED_BYTES = 99 * 1024
MANY_QUERIES = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "gfx942": "v_mfma"}
FEW_QUERIES = {"sm_80": "mma.sync", "sm_90": "mma.sync", "sm_100": "mma.sync", "gfx942": "v_mfma"}
"""Tiles of 16 rows are below what wgmma and tcgen05 take."""
MANY_AT_ONCE = 4
"""Programs of a multiprocessor that hide each other's waits, so that none need copy ahead."""


def broken(one: Compiled) -> list[str]:
    """The bounds that don't hold, as sentences; fp32 has no fast products, so nothing is asked of them there."""
    wrong = []
    if one.stack_bytes or one.spills:
        wrong.append(f"{one.stack_bytes} bytes of stack and {one.spills} spills, expected none")
    limit = SMALL_SHARED_BYTES if one.target == "sm_80" else SHARED_BYTES[one.target]
    if one.shared_bytes > limit:
        wrong.append(f"{one.shared_bytes:,} bytes of shared memory, the target has {limit:,}")
    if one.name.startswith("attention") and "merge" not in one.name:
        wrong += _attention(one)
    if (
        one.name.startswith("fixed_linear")
        and "add_parts" not in one.name
        and not one.products[MANY_QUERIES[one.target]]
    ):
        wrong.append(f"no {MANY_QUERIES[one.target]} in it, but {one.products}: tiles of other sizes have those")
    return wrong


def _attention(one: Compiled) -> list[str]:
    wrong = []
    many, decode = "of many rows" in one.name, "decode" in one.name
    expected = (FEW_QUERIES if many or decode or "fixed" in one.name else MANY_QUERIES)[one.target]
    if not one.products[expected]:
        wrong.append(f"no {expected} in it, but {one.products}")
    if one.target == "gfx942":  # AMD's registers hold the next tile, nothing is asynchronous
        return wrong
    registers = -(-one.registers // 8) * 8 * 32 * one.warps
    at_once = 65536 // registers
    if many and min(at_once, SHARED_BYTES[one.target] // one.shared_bytes) >= MANY_AT_ONCE:
        return wrong  # while one waits for its copies the others compute
    if many or decode:
        if one.buffers < 2:
            wrong.append(f"{one.buffers} buffers for tiles of keys, expected 2 or more")
        if not any(one.waits):
            wrong.append(f"every wait is for all copies ({one.waits}): nothing is read while something is computed")
        if at_once < 3:
            wrong.append(f"{one.registers} registers of {32 * one.warps} threads, expected room for three programs")
    return wrong
