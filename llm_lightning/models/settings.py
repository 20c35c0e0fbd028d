"""Check the names in `model.config` against the config class and against the names that the model's code reads."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from llm_lightning.errors import UserError, nearest

READS = re.compile(r"""\bconfig\.([a-z_]\w*)|\b(?:getattr|hasattr)\(\s*(?:self\.)?config,\s*["'](\w+)["']""")


def check_settings(model_config: Any, settings: dict[str, Any]) -> None:
    """Raise UserError for a setting that the architecture of `model_config` does not have, or that is given under two names.

    Architectures that also read images keep the settings of their text model one level below, and would ignore settings above it.
    """
    if not model_config.is_encoder_decoder and "text_config" in model_config.sub_configs:
        text_type = model_config.get_text_config().model_type
        raise UserError(
            f"model.architecture={model_config.model_type}: it reads more than text; from scratch give its text model alone, "
            f"model.architecture={text_type}."
        )
    model_type, values = model_config.model_type, dict[str, tuple[str, Any]]()
    for key, value in settings.items():
        if key == "vocab_size":
            raise UserError("model.config.vocab_size: the tokenizer says how many there are; set model.tokenizer.vocab_size.")
        if not hasattr(model_config, key) and key not in _read_names(type(model_config)):
            names = [*model_config.to_dict(), *model_config.attribute_map, *_read_names(type(model_config))]
            raise UserError(f"model.config.{key}: {model_type} has no such setting.{nearest(key, dict.fromkeys(names))}")
        other, equal = values.setdefault(model_config.attribute_map.get(key, key), (key, value))
        if equal != value:
            raise UserError(
                f"model.config.{other}={equal} and model.config.{key}={value} are two names of one setting; give one of them."
            )


def _read_names(config_class: Any) -> set[str]:
    """Return the settings that the sources of an architecture read: DeBERTa-v2's `position_buckets` is not in its config class."""
    file = Path(inspect.getfile(config_class))
    sources = [file, *file.parent.glob("modeling_*.py")]
    texts = (source.read_text(encoding="utf-8") for source in sources if not source.name.endswith(("_tf.py", "_flax.py")))
    return {first or second for text in texts for first, second in READS.findall(text)}
