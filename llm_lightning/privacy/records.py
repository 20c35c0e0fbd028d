"""What the gradient of each sequence is made of, and its norm, without a gradient in memory for each sequence.

The gradient of a matrix for sequence s is G_s = Σ r_i c_iᵀ over the positions i of s: for a linear layer, r are the gradients of its
outputs and c its inputs. Then ‖G_s‖² = Σ (r_i · r_j)(c_i · c_j) over pairs of positions (ghost clipping, Li et al. 2022, section 3), or,
where sequences are long, the square of the product itself. The sum Σ_s f_s G_s is one product of the same r and c, each r_i scaled by
f_s (book-keeping, Bu et al. 2023): no second backward pass.

A matrix that is used several times (tied embeddings, shared layers) has one G_s: the sum over its uses, cross terms included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

AT_ONCE = 1 << 26
"""Numbers of an intermediate result in memory at a time."""


@dataclass
class Matrix:
    """A use of a matrix (rows, columns): G_s = Σ r_i c_iᵀ."""

    r: Tensor
    """(positions, rows)"""
    c: Tensor
    """(positions, columns)"""
    units: Tensor
    """(positions,) int64: the unit that each position belongs to; the number of units for padding."""


@dataclass
class Lookup:
    """A use of a matrix as a table: r_i is 1 at the row `ids[i]`, else 0."""

    ids: Tensor
    """(positions,) int64"""
    c: Tensor
    """(positions, columns)"""
    units: Tensor
    """As in `Matrix`."""


@dataclass
class Records:
    """The parts of one parameter's gradient in one micro-batch."""

    matrices: list[Matrix] = field(default_factory=list)
    lookups: list[Lookup] = field(default_factory=list)
    vectors: Tensor | None = None
    """(units + 1, …) the gradient of each unit itself, where the parameter is a vector; the last one is padding's."""

    def squared_norms(self, units: int) -> Tensor:
        """Return (units,) ‖G_s‖², in fp32 or fp64."""
        if self.vectors is not None:
            return self.vectors[:units].square().sum(-1)
        matrix, table = join_matrices(self.matrices), join_lookups(self.lookups)
        parts = [_of_matrix(matrix, units)] if matrix else []
        parts += [_of_table(table, units)] if table else []
        if matrix and table:
            parts.append(2 * _of_both(matrix, table, units))
        return torch.stack(parts).sum(0)

    def add_to(self, gradient: Tensor, factors: Tensor) -> None:
        """Add Σ_s f_s G_s to a gradient; `factors` (units + 1,) ends with 0, for padding."""
        if self.vectors is not None:
            gradient += (factors.to(self.vectors.dtype) @ self.vectors).view_as(gradient)
        for matrix in self.matrices:
            gradient += (matrix.r * factors[matrix.units, None].to(matrix.r.dtype)).T @ matrix.c
        for table in self.lookups:
            gradient.index_add_(0, table.ids, (table.c * factors[table.units, None]).to(gradient.dtype))


def join_matrices(uses: list[Matrix]) -> Matrix | None:
    """Return all uses of a matrix as one, in fp32 at least; None without a use."""
    if not uses:
        return None
    parts = ([_exact(use.r) for use in uses], [_exact(use.c) for use in uses], [use.units for use in uses])
    return Matrix(*(torch.cat(part) if len(part) > 1 else part[0] for part in parts))


def join_lookups(uses: list[Lookup]) -> Lookup | None:
    """Return all uses of a table as one, in fp32 at least; None without a use."""
    if not uses:
        return None
    parts = ([use.ids for use in uses], [_exact(use.c) for use in uses], [use.units for use in uses])
    return Lookup(*(torch.cat(part) if len(part) > 1 else part[0] for part in parts))


def _exact(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def grids(positions: Tensor, units: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield groups of units of like sizes: (units,) their numbers, and (units, most positions) the places of their positions.

    Places past a unit's last position are the number of all positions, where `_rows` has a row of zeros. A group has at most `AT_ONCE`
    numbers, of `width` a place.
    """
    order = torch.argsort(positions, stable=True)
    counts = torch.bincount(positions, minlength=units + 1)[:units]
    starts = counts.cumsum(0) - counts
    by_size = torch.argsort(counts, descending=True)
    sizes = counts[by_size].tolist()
    first = 0
    while first < units and sizes[first]:
        longest = sizes[first]
        last = min(units, first + max(1, AT_ONCE // (longest * width)))
        last = next((i for i in range(first, last) if 2 * sizes[i] < longest), last)  # at most half of a group is padding
        group = by_size[first:last]
        column = torch.arange(longest, device=positions.device)
        inside = column < counts[group, None]
        places = torch.where(inside, (starts[group, None] + column).clamp(max=len(order) - 1), 0)
        yield group, torch.where(inside, order[places], len(order))
        first = last


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """Return (units, most positions, width) the rows of `values` (positions, width) at places; zeros where a place is past the end."""
    rows = values[places.clamp(max=len(values) - 1)]
    return rows.masked_fill_((places == len(values))[..., None], 0.0)


def _of_matrix(use: Matrix, units: int) -> Tensor:
    total = use.r.new_zeros(units)
    p, q = use.r.shape[1], use.c.shape[1]
    for group, places in grids(use.units, units, p + q):
        r, c = _rows(use.r, places), _rows(use.c, places)
        if places.shape[1] * (p + q) <= p * q:
            total[group] = ((r @ r.mT) * (c @ c.mT)).sum((1, 2))
        else:
            for unit, own_r, own_c in zip(group.tolist(), r, c, strict=True):
                total[unit] = (own_r.T @ own_c).square().sum()
    return total


def _of_table(use: Lookup, units: int) -> Tensor:
    keys, inverse = torch.unique(torch.stack([use.units, use.ids]), dim=1, return_inverse=True)
    sums = use.c.new_zeros(keys.shape[1], use.c.shape[1]).index_add_(0, inverse, use.c)
    return sums.new_zeros(units + 1).index_add_(0, keys[0], sums.square().sum(-1))[:units]


def _of_both(matrix: Matrix, table: Lookup, units: int) -> Tensor:
    """Return (units,) the inner products of G_s by the matrix's uses and by the table's: Σ (c_i · c_j) r_j[id_i]."""
    total = matrix.r.new_zeros(units)
    by_unit = {}
    for group, places in grids(table.units, units, 1):
        by_unit |= {unit: own[own < len(table.ids)] for unit, own in zip(group.tolist(), places, strict=True)}
    for group, places in grids(matrix.units, units, 1):
        for unit, own in zip(group.tolist(), places, strict=True):
            if unit in by_unit:
                uses, lookups = own[own < len(matrix.r)], by_unit[unit]
                products = table.c[lookups] @ matrix.c[uses].T
                total[unit] = (products * matrix.r[uses[None], table.ids[lookups, None]]).sum()
    return total
