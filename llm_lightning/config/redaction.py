"""Redact credentials in configs, command lines and messages: they are written as ***, and no file holds them.

They are recognised by their key (`password`, `hf_token`), by their place in an address, by their shape, or because an environment variable
with the name of a secret holds them.
"""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "***"
KEY = (
    r"(?:(?:\w+[_-])?(?:password|passwd|secret|credentials?|api[_-]?key|access[_-]?key|private[_-]?key)"
    r"|(?:\w+[_-])?(?:hf|hub|auth|access|api|wandb|github|gitlab|session|bearer)[_-]token|token)"
)
"""Pattern of the key of a secret; a tokenizer's `eos_token` does not match."""
NAMED = re.compile(rf"(?i)((?<![\w-]){KEY}['\"]?=['\"]?|[{{,]\s*['\"]?{KEY}['\"]?\s*:\s*['\"]?)[^\s,'\"}}&]+")
"""`key=value` of a command line, `{key: value}` of a mapping in it."""
SHAPES = [
    (re.compile(r"(?<=://)[^\s/@'\"]+(?=@)"), HIDDEN),  # user:password@ of an address
    (re.compile(r"(?i)([?&][\w-]*(?:sig|signature|key|token|credential|password|secret)=)[^\s&'\"]+"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(?:hf_|sk-|gh[opsu]_|github_pat_|wandb_v1_|AKIA|xox[abp]-)[\w-]{16,}"), HIDDEN),
]
VARIABLE = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")
SHORTEST = 8  # characters of a variable that counts as a secret: shorter values occur in any text


def redact(value: Any) -> Any:
    """Return plain containers, or a text, with their secrets redacted."""
    return _redact(value, _find_secrets())


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            key: HIDDEN if _plain(item) and re.fullmatch(KEY, str(key), re.IGNORECASE) else _redact(item, secrets)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_redact(item, secrets) for item in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, HIDDEN)
    for shape, instead in SHAPES:
        value = shape.sub(instead, value)
    return NAMED.sub(rf"\1{HIDDEN}", value)


def _plain(item: Any) -> bool:
    return isinstance(item, str | int | float) and not isinstance(item, bool)


def _find_secrets() -> list[str]:
    secrets = {value for name, value in os.environ.items() if VARIABLE.search(name.upper()) and len(value) >= SHORTEST}
    return sorted(secrets, key=len, reverse=True)
