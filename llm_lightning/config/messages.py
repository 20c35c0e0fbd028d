"""Explain to the user why Hydra or OmegaConf refuses a command line."""

from __future__ import annotations

import os
import re
import shlex
import traceback

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigKeyError, InterpolationKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError

from llm_lightning.config.open_keys import unknown_key
from llm_lightning.config.overrides import is_text, write_override
from llm_lightning.config.schema import OPEN_GROUPS
from llm_lightning.errors import join_names, nearest

OF_HYDRA = (HydraException, OmegaConfBaseException, MarkedYAMLError)
"""Errors in the command line or in the files of conf/."""
_KEY_OF_FILE = re.compile(r"In '([^']+)': \w+ raised while composing config:\nKey .* not in .*\n\s*full_key: (\S+)")
"""Hydra's message on a file of conf/ with a key that the schema does not have; its groups are the file and the key."""


def explain(error: Exception, in_shell: bool = True) -> str:
    """Return one message for the user: the key, the value found, the allowed values, the nearest valid name.

    A suggested line is quoted for a shell, or for Python if `in_shell` is false.
    """
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        options = join_names(error.options, 40)
        return f"{group}={option}: there is no such option; {group} can be {options}.{nearest(option, error.options)}"
    if isinstance(error, OverrideParseException):
        return _explain_unreadable(str(error.override), in_shell)
    if isinstance(error, ConfigCompositionException) and str(error).startswith("Could not override"):
        key = str(getattr(cause, "full_key", None) or str(error).split("'")[1])
        return unknown_key(key)
    if isinstance(cause, ConfigKeyError) and cause.full_key:
        return unknown_key(str(cause.full_key))
    if isinstance(cause, InterpolationKeyError) and cause.full_key:
        hint = "${…} stands for another key, and ${oc.env:NAME} for a variable of the environment"
        return f"{cause.full_key}: {str(cause.msg).splitlines()[0]}; {hint}."
    if isinstance(error, ConfigCompositionException) and (match := _KEY_OF_FILE.search(str(error))) is not None:
        return f"{match.group(1)}: {unknown_key(match.group(2))}"
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: this is no YAML ({error.problem})."
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return f"{cause.full_key}: {str(cause.msg).splitlines()[0]}."
    if match := re.match(r"Ambiguous value for argument '(([^=]*)=(.*))'", str(error)):
        override, key, value = match.groups()
        point = f" a decimal number has a point, {key}={value.replace(',', '.')};" if re.fullmatch(r"-?\d+,\d+", value) else ""
        return f"{override}:{point} several values are a sweep, train.py -m …; a list is {key}=[{value}]."
    return str(error)


def _explain_unreadable(override: str, in_shell: bool) -> str:
    """Return the message for an override that Hydra's grammar does not accept; the suggested line works when pasted."""
    key, equals, value = override.partition("=")
    message = f"{override}: this cannot be read; "
    if not equals:
        hint = """ A text with blanks is quoted as a whole: "prompt=…".""" if in_shell else ""
        return f"{message}an argument is key=value, or group=option.{hint}"
    may_be_text = is_text(key.lstrip("+")) or key.lstrip("+").partition(".")[0] in OPEN_GROUPS
    if may_be_text and not value.startswith(("[", "{")) and not (value.startswith("(") and value.endswith(")")):
        quoted = write_override(key, value)
        return f"{message}write it as {shlex.quote(quoted) if in_shell else repr(quoted)}."
    return (
        f"{message}a list is [a,b], a mapping {{a: 1, b: 2}}, and text with other signs in them is quoted: ['a (1)','b'], "
        f"{{a: 'b (1)'}}."
    )


def is_from_hydra(error: Exception) -> bool:
    """Return whether Hydra raised an error about the command line; some of these are plain ValueErrors."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(part in frames[-1].filename.replace(os.sep, "/") for part in ("/hydra/", "/omegaconf/")) if frames else False
