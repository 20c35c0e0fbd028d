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

    @property
    def is_one_product(self) -> bool:
        """Whether the gradient is that of one use of a matrix."""
        return len(self.matrices) == 1 and not self.lookups and self.vectors is None

    def squared_norms(self, units: int) -> Tensor:
        """Return (units,) ‖G_s‖², in fp32 or fp64."""
        if self.vectors is not None:
            return self.vectors[:units].square().sum(-1)
        matrix, table = join_matrices(self.matrices), join_lookups(self.lookups)
        parts = [square_matrices([matrix], units)] if matrix else []
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


@dataclass(frozen=True)
class Group:
    """Units with equally many positions."""

    units: Tensor
    """(units,) their numbers."""
    places: Tensor
    """(units, positions of each)"""
    span: slice | None
    """The places, where they are neighbours in this order."""

    def rows_of(self, values: Tensor) -> Tensor:
        """Return (units, positions of each, width) the rows of `values` (positions, width), in fp32 at least."""
        rows = values[self.places.flatten()] if self.span is None else values[self.span]
        return _exact(rows).view(*self.places.shape, -1)


def group_units(positions: Tensor, units: int, width: int) -> Iterator[Group]:
    """Yield the units that have positions, those with equally many together; a group has at most `AT_ONCE` numbers, of `width` a place.

    `positions`: (positions,) the unit of each, or the number of units for padding.
    """
    order = torch.argsort(positions, stable=True)
    counts = torch.bincount(positions, minlength=units + 1)[:units]
    starts = counts.cumsum(0) - counts
    by_size = torch.argsort(counts, descending=True, stable=True)
    sizes = counts[by_size].tolist()
    first = 0
    while first < units and sizes[first]:
        size = sizes[first]
        most = min(units, first + max(1, AT_ONCE // (size * width)))
        last = next((i for i in range(first, most) if sizes[i] != size), most)
        numbers = by_size[first:last]
        places = order[starts[numbers, None] + torch.arange(size, device=positions.device)]
        begin = int(places[0, 0])
        are_neighbours = bool((places.flatten() == torch.arange(begin, begin + places.numel(), device=places.device)).all())
        yield Group(numbers, places, slice(begin, begin + places.numel()) if are_neighbours else None)
        first = last


def square_matrices(uses: list[Matrix], units: int) -> Tensor:
    """Return (units,) the sum of ‖G_s‖² over matrices, each with one use here, whose positions belong to the same units."""
    total = torch.zeros(units, dtype=_exact(uses[0].r).dtype, device=uses[0].r.device)
    width = max(use.r.shape[1] + use.c.shape[1] for use in uses)
    for group in group_units(uses[0].units, units, width):
        length = group.places.shape[1]
        grams: dict[tuple[int, int], Tensor] = {}

        def gram(values: Tensor, group: Group = group, grams: dict[tuple[int, int], Tensor] = grams) -> Tensor:
            key = (
                values.data_ptr(),
                values.shape[1],
            )  # several matrices may have the same input, as those of queries, keys and values
            if key not in grams:
                rows = group.rows_of(values)
                grams[key] = rows @ rows.mT
            return grams[key]

        for use in uses:
            if length * (use.r.shape[1] + use.c.shape[1]) <= use.r.shape[1] * use.c.shape[1]:
                total[group.units] += (gram(use.r) * gram(use.c)).sum((1, 2))
            else:
                for unit, r, c in zip(group.units.tolist(), group.rows_of(use.r), group.rows_of(use.c), strict=True):
                    total[unit] += (r.T @ c).square().sum()
    return total


def _of_table(use: Lookup, units: int) -> Tensor:
    keys, inverse = torch.unique(torch.stack([use.units, use.ids]), dim=1, return_inverse=True)
    sums = use.c.new_zeros(keys.shape[1], use.c.shape[1]).index_add_(0, inverse, use.c)
    return sums.new_zeros(units + 1).index_add_(0, keys[0], sums.square().sum(-1))[:units]


def _of_both(matrix: Matrix, table: Lookup, units: int) -> Tensor:
    """Return (units,) the inner products of G_s by the matrix's uses and by the table's: Σ (c_i · c_j) r_j[id_i]."""
    total = matrix.r.new_zeros(units)
    lookups: dict[int, Tensor] = {}
    for group in group_units(table.units, units, 1):
        lookups |= dict(zip(group.units.tolist(), group.places, strict=True))
    for group in group_units(matrix.units, units, 1):
        for unit, uses in zip(group.units.tolist(), group.places, strict=True):
            if unit in lookups:
                products = table.c[lookups[unit]] @ matrix.c[uses].T
                total[unit] = (products * matrix.r[uses[None], table.ids[lookups[unit], None]]).sum()
    return total
