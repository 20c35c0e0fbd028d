"""What stays with the process between steps: freed memory, and the kernels that were made."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from resource import RUSAGE_SELF, getrusage

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_pages() -> None:
    """Have the C library keep what is freed: by default each large tensor of each step is mapped and cleared by the kernel anew.

    Worth 8 % of a small encoder's step on two cores (glibc 2.36); elsewhere than on glibc, nothing happens.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def keep_kernels() -> None:
    """Have oneDNN keep kernels for all the shapes of a run: it forgets after 1,024, and flat batches have more. Before its first use."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")


def peak(device: torch.device) -> float:
    """Bytes at the most so far: of the device where it has memory of its own, else of the process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 1024.0 * getrusage(RUSAGE_SELF).ru_maxrss


def settle(device: torch.device) -> None:
    """Begin to train: collect garbage once, and leave what is alive out of later collections, which would pause to look through it."""
    gc.collect()
    gc.freeze()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def release() -> None:
    """Let garbage be collected as ever."""
    gc.unfreeze()
