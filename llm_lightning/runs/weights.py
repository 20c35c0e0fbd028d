"""Identify pretrained weights by their content, without torch and without reading gigabytes."""

from __future__ import annotations

import json
from pathlib import Path

import xxhash

PATTERNS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "adapter_config.json", "*.py")
IGNORED = ("transformers_version", "_name_or_path")  # of config.json: they change with the program that writes it
BLOCK, BLOCKS = 1 << 16, 64
"""Bytes of a sample of a file, and number of samples: training changes nearly every weight, so 4 MiB of a file suffice to see a change."""


def fingerprint_weights(origin: str | None) -> str | None:
    """Return a hash of a Hugging Face folder, or of the cached copy of a hub model; None if it has no files.

    It covers config.json, and of each file of weights the size, the beginning, the end and samples in between.
    """
    folder = _find_folder(origin)
    files = sorted({path for pattern in PATTERNS for path in folder.glob(pattern)}) if folder is not None else []
    if folder is None or not files:
        return None
    digest = xxhash.xxh3_128()
    config = folder / "config.json"
    if config.is_file():
        settings = json.loads(config.read_text(encoding="utf-8"))
        digest.update(json.dumps({k: v for k, v in settings.items() if k not in IGNORED}, sort_keys=True).encode())
    for path in files:
        size = path.stat().st_size
        digest.update(f"\0{path.name} {size}\0".encode())
        with path.open("rb") as file:
            for number in range(BLOCKS):
                file.seek(max(size - BLOCK, 0) * number // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _find_folder(origin: str | None) -> Path | None:
    if origin is None:
        return None
    if Path(origin).is_dir():
        return Path(origin)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(origin, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None
