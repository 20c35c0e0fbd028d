"""Inspect the machine: the cores that this process may use, and the unit that multiplies bf16."""

from __future__ import annotations

import os


def cores() -> int:
    """Return the number of cores that this process may run on; a batch system may allow fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bf16_unit(accelerator: str) -> str | None:
    """Return the unit that multiplies bf16 in hardware on an accelerator (`cpu`, `cuda`, `mps`), or None if there is none."""
    import torch  # takes seconds, and `cores` does not need it

    if accelerator == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "the GPU"
    # private, as is `_is_avx512_bf16_supported`; read in torch 2.13
    if accelerator == "cpu" and torch.cpu._is_amx_tile_supported():
        return "the CPU's AMX"
    if accelerator == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "the CPU's AVX512-BF16"
    return None
