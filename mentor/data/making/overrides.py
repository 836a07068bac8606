"""What people set in a recipe: its inputs and single settings, as `key=value`. Nothing of it is ever executed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mentor.config import near
from mentor.errors import UserError

# Settings of the command line that are no part of a recipe: they do not change the bytes of the shards.
COMMAND_KEYS = ("output", "workers")
# How the default of an input begins that must be given.
GIVEN_LATER = "???"


def take_inputs(data: dict[str, Any]) -> dict[str, Any]:
    """The recipe's inputs with their defaults, taken out of it.

    Raises:
        UserError: they are no mapping of usable names.
    """
    inputs = data.pop("inputs", None) or {}
    if not isinstance(inputs, dict):
        raise UserError("inputs: write names and their defaults")
    for name in inputs:
        taken = name in COMMAND_KEYS or data.get(name, f"${{{name}}}") != f"${{{name}}}"
        if taken or not str(name).isidentifier():
            raise UserError(f"inputs: {name!r} cannot be used: it is no word or means something else already")
    return inputs


def set_input(inputs: dict[str, Any], override: str) -> bool:
    """Whether an override sets an input; if so, that is done.

    Raises:
        UserError: its value cannot be read.
    """
    key, equals, text = override.partition("=")
    if not equals or key not in inputs:
        return False
    # Mostly as it stands: names of folders may look like numbers or have a #.
    value = _read(key, text) if text.startswith("[") or text == "null" else text
    # People mean the folder they are in, whatever lies beside the recipe.
    inputs[key] = [_from_here(one) for one in value] if isinstance(value, list) else _from_here(value)
    return True


def _from_here(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        return value
    path = Path(value).expanduser()
    return str(path.absolute()) if path.exists() else value


def fill_in(value: Any, inputs: Mapping[str, Any], overrides: Sequence[str]) -> Any:
    """The value with inputs put in; nothing else is ever put in: no environment, no code.

    Raises:
        UserError: an input is unknown or must be given; `overrides` help to guess what was meant.
    """
    if isinstance(value, Mapping):
        return {key: fill_in(one, inputs, overrides) for key, one in value.items()}
    if isinstance(value, list):
        return [fill_in(one, inputs, overrides) for one in value]
    if not isinstance(value, str) or not (value.startswith("${") and value.endswith("}")):
        return value
    name = value[2:-1]
    if name not in inputs:
        raise UserError(f"{value} is none of the inputs{near(name, inputs)}: there are {', '.join(inputs) or 'none'}")
    if is_missing(inputs[name]):
        what = inputs[name].removeprefix(GIVEN_LATER).strip()
        unknown = [key for key in (one.partition("=")[0] for one in overrides) if near(key, [name])]
        hint = f" ({unknown[0]} is unknown)" if unknown else ""
        raise UserError(f"{name} has no default{hint}: say {name}={name.upper()}" + (f", {what}" if what else ""))
    return inputs[name]


def is_missing(value: Any) -> bool:
    """Whether the value of an input must be given."""
    return isinstance(value, str) and value.startswith(GIVEN_LATER)


def put_setting(data: dict[str, Any], override: str, inputs: Mapping[str, Any]) -> None:
    """Put `key=value` into settings, whose keys are dotted, with numbers in lists.

    Raises:
        UserError: there is no such setting, or its value cannot be read.
    """
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"cannot read {override!r}: write settings as key=value")
    value = _read(key, text)
    *parents, last = key.split(".")
    cursor: Any = data
    for part in parents:
        cursor = _inside(cursor).get(part)
    if last not in _inside(cursor):
        known = [*inputs, *_dotted(data), *COMMAND_KEYS]
        raise UserError(f"unknown key {key}{near(key, known)}: there are {', '.join(known)}")
    cursor[int(last) if isinstance(cursor, list) else last] = value


def _read(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{key}: {text!r} cannot be read: write numbers, words, or lists like [a, b]") from None


def _inside(value: Any) -> Mapping[str, Any]:
    """The entries of a mapping or list by their keys; none of anything else."""
    if isinstance(value, list):
        return {str(index): one for index, one in enumerate(value)}
    return value if isinstance(value, dict) else {}


def _dotted(value: Any, prefix: str = "") -> list[str]:
    """The dotted keys of all settings."""
    keys: list[str] = []
    for key, one in _inside(value).items():
        deeper = _dotted(one, f"{prefix}{key}.") if not isinstance(one, list) or _holds_mappings(one) else []
        keys += deeper or [f"{prefix}{key}"]
    return keys


def _holds_mappings(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(one, dict) for one in value)
