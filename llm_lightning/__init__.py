"""llm_lightning: pretrain and fine-tune language models on PyTorch Lightning."""

from typing import Any

__all__ = ["load", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from llm_lightning import api  # torch and its friends: only where they are used

        return getattr(api, name)
    raise AttributeError(name)
