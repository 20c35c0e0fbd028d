"""Read the dimensions of a sweep: values to choose from and ranges to draw from, in Hydra's own notation.

`optimizer.lr=1e-5,1e-4`, `seed=range(1,5)` and `choice(a,b)` are values; `interval(1e-5,1e-3)`, or `tag(log,interval(1e-5,1e-3))` for one
that is uniform on a logarithmic scale, is a range.
"""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep

from llm_lightning.errors import UserError

OWN = ("sweep", "launcher", "run_dir", "hydra")
"""Keys that concern the sweep, not its runs."""


@dataclass(frozen=True)
class Dimension:
    """One key that varies: `options`, each with its name and its overrides; or a range, if `options` is empty."""

    key: str
    options: dict[str, tuple[str, ...]]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: int | None = None
    """Distance between neighbouring whole numbers; None if the values are not equally spaced whole numbers."""

    @property
    def middle(self) -> float:
        """Return a number inside the range."""
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return middle if self.step is None else int(middle)

    def at(self, value: Any) -> tuple[str, ...]:
        """Return the overrides of an option's name, or of a number in the range."""
        return self.options[value] if self.options else (f"{self.key}={value if self.step else format(value, '.6g')}",)


def read(arguments: Sequence[str], space: dict[str, Any], choices: Sequence[str]) -> tuple[list[str], list[Dimension]]:
    """Return (overrides that all runs share, the dimensions that vary). The command line replaces the entry of `space` for a key.

    In `space`, a list holds the values of a key, and a single value is fixed. Raises UserError if a range cannot be read.
    """
    parser = OverridesParser.create()
    override_by_key = {parsed.get_key_element(): parsed for parsed in parser.parse_overrides(list(arguments))}
    override_by_key = {key: parsed for key, parsed in override_by_key.items() if re.split(r"[./@]", key.lstrip("+~"))[0] not in OWN}
    written = [f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}" for key, value in space.items()]
    ranges = {parsed.get_key_element(): parsed for parsed in parser.parse_overrides(written)}
    override_by_key = {key.lstrip("+"): parsed for key, parsed in override_by_key.items()}
    everything = ranges | override_by_key
    fixed = [str(parsed.input_line) for parsed in (override_by_key | everything).values() if not parsed.is_sweep_override()]
    varied = [parsed for parsed in everything.values() if parsed.is_sweep_override()]
    dimensions = [_dimension(parsed) for parsed in varied]
    if choices:
        dimensions.insert(0, Dimension("choice", {choice: tuple(shlex.split(choice)) for choice in choices}))
    return fixed, dimensions


def _dimension(parsed: Override) -> Dimension:
    key, sweep = parsed.get_key_element(), parsed.value()
    if parsed.is_interval_sweep():
        low, high = float(sweep.start), float(sweep.end)  # type: ignore[union-attr, arg-type]
        log = "log" in sweep.tags  # type: ignore[union-attr]
        if not low < high or (log and low <= 0):
            raise UserError(f"{parsed.input_line}: a range goes from the lower to the higher end{', above 0' if log else ''}.")
        is_integer = isinstance(sweep.start, int) and isinstance(sweep.end, int)  # type: ignore[union-attr]  # int(interval(8,64))
        return Dimension(key, {}, low, high, log, step=1 if is_integer else None)
    options: dict[str, tuple[str, ...]] = {value: (f"{key}={value}",) for value in parsed.sweep_string_iterator()}
    if (
        isinstance(sweep, RangeSweep)
        and all(isinstance(end, int) for end in (sweep.start, sweep.stop, sweep.step))
        and sweep.step > 0
    ):
        numbers = [int(value) for value in options]
        return Dimension(key, options, min(numbers), max(numbers), step=int(sweep.step))
    return Dimension(key, options)


def grid(dimensions: list[Dimension]) -> Iterator[dict[str, str]]:
    """Yield every combination of options, the last dimension varying fastest. Raises UserError if one of them is a range."""
    for dimension in dimensions:
        if not dimension.options:
            raise UserError(
                f"{dimension.key}: sweep=grid takes values, not ranges; list them, or choose sweep=random or sweep=optuna."
            )
    for names in itertools.product(*(dimension.options for dimension in dimensions)):
        yield {dimension.key: name for dimension, name in zip(dimensions, names, strict=True)}


def overrides(dimensions: list[Dimension], point: dict[str, Any]) -> list[str]:
    """Return the overrides of a point: for each dimension, by its key, an option's name or a number."""
    return [override for dimension in dimensions for override in dimension.at(point[dimension.key])]


def wandb_sweep(
    program: str, fixed: list[str], dimensions: list[Dimension], method: str, metric: str, maximize: bool
) -> dict[str, Any]:
    """Return the same space as the configuration of a W&B sweep (`wandb sweep <file>`); without `choices`, which W&B cannot express."""
    parameters: dict[str, Any] = {}
    for d in dimensions:
        if d.key == "choice":
            continue
        if d.options:
            parameters[d.key] = {"values": list(d.options)}
        else:
            kind = ("q_log_uniform_values" if d.log else "int_uniform") if d.step else "log_uniform_values" if d.log else "uniform"
            low, high = (int(d.low), int(d.high)) if d.step else (d.low, d.high)
            parameters[d.key] = {"distribution": kind, "min": low, "max": high}
    return {
        "program": program,
        "method": {"optuna": "bayes"}.get(method, method),
        "metric": {"name": metric, "goal": "maximize" if maximize else "minimize"},
        "parameters": parameters,
        "command": ["${env}", "python", "${program}", *fixed, "${args_no_hyphens}"],
    }
