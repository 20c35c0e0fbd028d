"""How large the benchmarks are, and where their data lies.

`LLM_LIGHTNING_BENCHMARK=tiny` shrinks every benchmark to seconds, to see that it runs to its end. Such figures are not written to results/.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TypeVar

TINY = os.environ.get("LLM_LIGHTNING_BENCHMARK") == "tiny"
DATA = Path(os.environ.get("LLM_LIGHTNING_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
"""The folder of the data sets that are not shipped."""

T = TypeVar("T")


def pick(full: T, tiny: T) -> T:
    """Return `tiny` where benchmarks are to be tiny, else `full`."""
    return tiny if TINY else full


CORPUS: list[str] = pick([], ["data.share=0.02"])
"""How much of the built-in corpus is read."""


def has_data(*names: str) -> bool:
    """Return whether the data sets are there; say which are not, as the reason why a benchmark is skipped."""
    missing = [name for name in names if not (DATA / name).is_dir()]
    if missing:
        print(f"{Path(sys.argv[0]).name}: skipped, {DATA} has no {', no '.join(missing)} (LLM_LIGHTNING_DATA names the folder)")
    return not missing
