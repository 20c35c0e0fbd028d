"""The schema of a `_target_` is what Python's own `inspect` shows of it, read without importing it."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from omegaconf import OmegaConf

from llm_lightning.config import definitions, signatures
from llm_lightning.config.layers import OptionFile, keep_own_optimizer

FILES = {
    "elsewhere/__init__.py": "from .deep.parts import Child as Renamed\nfrom elsewhere.deep import parts\n",
    "elsewhere/deep/__init__.py": "",
    "elsewhere/deep/parts.py": """
from __future__ import annotations
from typing import Optional
from pathlib import Path
from elsewhere import base
from lone_file import Top

class Child(base.Parent):
    labelled = True

class Wider(base.Parent):
    def __init__(self, data, *, depth: int = 2, **rest):
        super().__init__(data, **rest)

class Open(Top):
    def __init__(self, data, *, size: "Size" = 1, **rest): ...

def function(model, lr: float, *, name: Optional[str] = None, path: Path = Path(), sizes: dict[str, int] = {}): ...
""",
    "elsewhere/lost.py": """
import no_such_module

class Lost(no_such_module.Base):
    def __init__(self, data, *, size: int = 1, **rest): ...
""",
    "elsewhere/base.py": """
class Parent:
    labelled: bool = False
    family = "encoder"
    def __init__(self, data, *, width: int, rate: float = 0.5): ...
""",
    "lone_file.py": "class Top:\n    def __init__(self, data, *, height: int = 1): ...\n",
}


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("packages")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    definitions._find_top.cache_clear()
    yield
    sys.path.remove(str(folder))


@pytest.mark.parametrize(
    "target",
    [
        "elsewhere.Renamed",
        "elsewhere.deep.parts.Child",
        "elsewhere.deep.parts.function",
        "elsewhere.base.Parent",
        "lone_file.Top",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.trainer.trainer.Trainer",
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "llm_lightning.objectives.classification.Classification",
        "llm_lightning.optim.muon.muon",
    ],
)
@pytest.mark.parametrize("positions", [0, 1])
def test_parameters_are_those_that_inspect_shows(target: str, positions: int) -> None:
    module, _, name = target.rpartition(".")
    shown = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    names, required = list(shown), {p.name for p in shown.values() if p.default is inspect.Parameter.empty}
    parameters = signatures.parameters(target, positions)
    if target.endswith(".Trainer"):  # every argument is by keyword
        positions = 0
    assert parameters is not None
    assert sorted(parameters) == sorted(names[positions:])
    assert {name for name, parameter in parameters.items() if parameter.required} == required & set(names[positions:])


def test_arguments_that_a_class_passes_on_belong_to_it() -> None:
    assert set(signatures.parameters("elsewhere.deep.parts.Wider", 1) or {}) == {"width", "rate", "depth"}
    assert set(signatures.parameters("elsewhere.deep.parts.Open", 1) or {}) == {"height", "size"}


@pytest.mark.parametrize("target", ["elsewhere.lost.Lost", "elsewhere.Missing", "no_package.X", "json.dumps.x"])
def test_what_the_source_does_not_show_is_not_guessed(target: str) -> None:
    assert signatures.parameters(target) is None


@pytest.mark.parametrize(
    ("parameter", "value", "problem"),
    [
        ("name", "a", None),
        ("name", None, None),
        ("name", 3, "text or null"),
        ("path", "a/b", None),  # a type of another module is not checked
        ("sizes", {"a": 1}, None),
        ("sizes", 3, "dict"),
        ("lr", "fast", "a number"),
    ],
)
def test_values_are_held_against_annotations(parameter: str, value: Any, problem: str | None) -> None:
    kind = (signatures.parameters("elsewhere.deep.parts.function") or {})[parameter].type
    assert (signatures.mismatch(value, kind) is None) == (problem is None)


def test_constants_are_inherited() -> None:
    assert signatures.constants("elsewhere.Renamed") == {"labelled": True, "family": "encoder"}
    assert signatures.constants("llm_lightning.objectives.multi_label.MultiLabel")["whole_sequences"] is True


@pytest.mark.parametrize(
    ("layers", "overrides", "expected"),
    [
        ({"optimizer/mine": {"lr": 3e-3, "momentum": 0.9}, "model/bert": {"lr": 5e-5}}, [], {"lr": 3e-3, "momentum": 0.9}),
        ({"optimizer/mine": {"lr": 3e-3}, "model/bert": {"lr": 5e-5}, "recipe/best": {"lr": 1e-4}}, [], {}),
        ({"optimizer/mine": {"lr": 3e-3}}, ["optimizer.lr=1"], {}),
        ({"optimizer/adamw": {"lr": 1e-3}, "model/bert": {"lr": 5e-5}}, [], {}),
    ],
)
def test_a_model_preset_does_not_change_the_users_own_optimizer(
    layers: dict[str, dict[str, float]], overrides: list[str], expected: dict[str, float]
) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    files = [OptionFile(path, not path.endswith("mine"), OmegaConf.create({"optimizer": v})) for path, v in layers.items()]
    assert keep_own_optimizer(files, OverridesParser.create().parse_overrides(overrides)) == expected
