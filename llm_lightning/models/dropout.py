"""Fast dropout on a CPU: torch draws random numbers one after the other, which takes a fifth of a small model's step.

Here one draw of 64 bits decides over four elements (p is rounded to 1/65,536), from NumPy's quickest generator (SFC64, Doty-Humphrey
2010), which torch's seeds.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def dropout(x: Tensor, p: float) -> Tensor:
    """Return zero with probability p, else x / (1 - p), element by element; x itself if p is 0."""
    if p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    return x * (_kept_op if torch.compiler.is_compiling() else draw_factors)(x.detach(), p)


def seed(number: int, device: torch.device) -> None:
    """Seed the generators that dropout on a device draws from."""
    if device.type == "cpu":
        # torch.manual_seed also queues a call for every absent kind of GPU, with a stack trace each: 1 ms, and memory that is never freed
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)


def mix_seeds(*parts: int) -> int:
    """Return one 63-bit seed from several numbers (splitmix64 steps), so that neighbouring steps share nothing."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & (1 << 64) - 1
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (1 << 64) - 1
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (1 << 64) - 1
        state ^= state >> 31
    return state >> 1


def draw_factors(like: Tensor, p: float) -> Tensor:
    """Return independent factors of the shape and type of `like`: 0 with probability p, else 1 / (1 - p)."""
    return factors(draws(like.numel()), p, like)


def draws(count: int) -> np.ndarray:
    """Return (count,) uint16: independent numbers, seeded by torch's generator."""
    return np.random.SFC64(int(torch.randint(2**63 - 1, ()))).random_raw(-(-count // 4)).view(np.uint16)[:count]


def factors(numbers: np.ndarray, p: float, like: Tensor) -> Tensor:
    """Return the factors of `draw_factors`, from one number of `draws` for each element of `like`."""
    factor = torch.tensor(1 / (1 - p), dtype=like.dtype).view(INTEGERS[like.element_size()]).numpy()  # its bits, times 0 or 1
    return torch.from_numpy((numbers >= round(p * 2**16)) * factor).view(like.dtype).view(like.shape)


_kept_op = torch.library.custom_op("llm_lightning::kept", draw_factors, mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
"""`draw_factors` for the compiler, which cannot trace NumPy."""


@_kept_op.register_fake
def _(like: Tensor, p: float) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


class Dropout(nn.Dropout):
    """`nn.Dropout` by the function `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


def drops(model: PreTrainedModel) -> bool:
    """Return whether a model has dropout in training, also of attention weights, which has no module."""
    settings = model.config.to_dict().items()
    of_config = any(("dropout" in name or "pdrop" in name) and isinstance(p, float) and p > 0 for name, p in settings)
    return of_config or any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())


def replace(model: nn.Module) -> None:
    """Replace every `nn.Dropout` of the model by our faster `Dropout`. Names of parameters do not change."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))
