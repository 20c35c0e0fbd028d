"""Pool the logits of a text's windows into those of the text."""

from __future__ import annotations

import torch
from torch import Tensor


def pool_windows(logits: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return (count, classes) the mean logits of each row's windows, in fp32, or fp64 for fp64.

    `logits` (windows, classes); `rows` (windows,) is the row of each window, or `count` for a window of padding.
    """
    exact = logits if logits.dtype == torch.float64 else logits.float()
    sums = exact.new_zeros(count + 1, exact.shape[1]).index_add(0, rows, exact)
    numbers = exact.new_zeros(count + 1).index_add(0, rows, exact.new_ones(len(rows)))
    return (sums / numbers.clamp(min=1)[:, None])[:count]
