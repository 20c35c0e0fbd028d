"""Pool the logits of a text's windows into those of the text: a mean, weighted by how much a window has to say.

Neither rule needs a weight of its own, so that the exported model is an ordinary classifier of windows, and a text of one window has its
logits unchanged. Attention that is learnt comes for nothing: a softmax over classes does not depend on the level of a window's logits,
so training is free to use the level as the window's weight.

Measured on small perceptrons (2 to 20 windows a text, 1,200 texts, 12 epochs): where one window decides by a word, or by a word beside a
mark, the plain mean has accuracy 1.00 and 0.89, the level 1.00 and 1.00. Where the most frequent class of all windows decides, they have
0.91 and 0.89, and the log of the mean exponential 0.65. `docs/objectives.md` has the table.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Weigh = Callable[[Tensor], Tensor]
"""A function of logits (windows, classes) that returns scores, (windows, 1) or (windows, classes). Their softmax over the windows of a row
gives the weights."""


def weigh_by_level(logits: Tensor) -> Tensor:
    """Weigh a window by the level of its logits, for classes of which one applies: those are free to have any level.

    The level is the coordinate along (1, …, 1) of length 1, so that it is learnt as quickly as an output of its own.
    """
    return logits.sum(1, keepdim=True) / logits.shape[1] ** 0.5


def weigh_by_logit(logits: Tensor) -> Tensor:
    """Weigh a window for each label by its logit, for labels that apply independently: the window that is surest counts most."""
    return logits


def weigh_alike(logits: Tensor) -> Tensor:
    """Weigh all windows alike, for numbers."""
    return logits.new_zeros(len(logits), 1)


def pool_windows(logits: Tensor, rows: Tensor, count: int, weigh: Weigh) -> Tensor:
    """Return (count, classes) the weighted mean of the logits of each row's windows, in fp32, or fp64 for fp64.

    `logits` (windows, classes); `rows` (windows,) is the row of each window, or `count` for a window of padding.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    scores = weigh(logits)
    places = rows[:, None].expand_as(scores)
    largest = scores.new_full((count + 1, scores.shape[1]), -torch.inf).scatter_reduce(0, places, scores.detach(), "amax")
    weights = (scores - largest[rows]).exp()
    totals = torch.zeros_like(largest).index_add(0, rows, weights)
    return logits.new_zeros(count + 1, logits.shape[1]).index_add(0, rows, logits * (weights / totals[rows]))[:count]
