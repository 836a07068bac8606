"""Composed and validated configuration: Hydra puts the YAML files together, pydantic checks every value."""

import difflib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, overload

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from mentor.errors import UserError


class Config(BaseModel):
    """Base of every configuration class: unknown keys are refused and instances do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


AnyConfig = TypeVar("AnyConfig")


def config_folder() -> Path:
    """The folder of the YAML files: `mentor/configs` in an installed wheel, else `configs` of the checkout.

    Raises:
        UserError: neither exists.
    """
    package = Path(__file__).resolve().parent
    candidates = (package / "configs", package.parent / "configs")
    for folder in candidates:
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"no configuration files in {candidates[0]} or {candidates[1]}: install mentor again")


def config_groups() -> dict[str, list[str]]:
    """The groups and the choices of each, by group name in alphabetical order."""
    groups = {}
    for folder in sorted(path for path in config_folder().iterdir() if path.is_dir()):
        choices = sorted(path.stem for path in folder.glob("*.yaml"))
        if choices:
            groups[folder.name] = choices
    return groups


def compose(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The composed configuration `name` as plain containers with every interpolation resolved.

    Args:
        name: YAML file at the top of the config folder, without its ending.
        overrides: `key=value` or `group=choice` strings. A choice of digits alone (`stage=1`) names a file too.

    Raises:
        UserError: unknown group choice, unknown key, unreadable override or a value that must be given.
    """
    composed = _compose(name, overrides)
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or "?"
        raise UserError(f"{key} has no default: say {key}=VALUE") from None
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be resolved: {_first_line(error)}") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@overload
def validate(cls: type[AnyConfig], data: Mapping[str, Any]) -> AnyConfig: ...
@overload
def validate(cls: Any, data: Mapping[str, Any]) -> Any: ...
def validate(cls: Any, data: Mapping[str, Any]) -> Any:
    """`data` as an instance of `cls`, which may also be a tagged union of configuration classes.

    Raises:
        UserError: one line that names the full path of every wrong value, what it was and what is allowed.
    """
    try:
        return TypeAdapter(cls).validate_python(dict(data))
    except ValidationError as error:
        raise UserError("; ".join(_explain(item, data, cls) for item in error.errors())) from None


def compose_command(name: str, arguments: Sequence[str], usage: str) -> dict[str, Any]:
    """The configuration that a command line asks for; `--help` and `--cfg` print and end the program.

    Args:
        name: YAML file to compose.
        arguments: what stands after the program's name.
        usage: text that `--help` prints above the groups and their choices.
    """
    return compose_with_options(name, arguments, usage, {})[0]


def compose_with_options(
    name: str, arguments: Sequence[str], usage: str, options: Mapping[str, bool]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What `compose_command` gives, and the options that the command has besides, as far as they were given.

    Args:
        name: see there.
        arguments: see there.
        usage: see there.
        options: name with its dashes -> whether a value belongs to it, after a blank or an equals sign.

    Raises:
        UserError: an unknown option, or one with a value too few or too many.
    """
    if {"--help", "-h"} & set(arguments):
        lines = [f"  {group}: {', '.join(choices)}" for group, choices in config_groups().items()]
        print("\n".join([usage, "", "Groups and their choices:", *lines]))
        sys.exit(0)
    given, settings = _split_options(arguments, {"--help": False, "--cfg": False, **options})
    composed = compose(name, settings)
    if "--cfg" in given:
        print(to_yaml(composed), end="")
        sys.exit(0)
    return composed, given


def _split_options(arguments: Sequence[str], known: Mapping[str, bool]) -> tuple[dict[str, str], list[str]]:
    """The options among the arguments, with their values or empty strings, and what is no option."""
    given: dict[str, str] = {}
    others: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            others.append(argument)
            continue
        if name not in known:
            *first, last = known
            raise UserError(
                f"unknown option {name}: known are {', '.join(first)} and {last}; settings are key=value without dashes"
            )
        if known[name]:
            value = value if equals else next(remaining, "")
            if not value or value.startswith("--"):
                raise UserError(f"{name} needs a value: write {name}=VALUE")
        elif equals:
            raise UserError(f"{name} takes no value, found {argument}: write {name} alone")
        given[name] = value
    return given, others


def to_yaml(data: Mapping[str, Any]) -> str:
    """`data` as YAML, keys in their own order."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(data)))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file as plain containers.

    Raises:
        UserError: the file is missing or holds no mapping.
    """
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path} cannot be read as a configuration: {_first_line(error)}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {_first_line(error)}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds no mapping of keys to values")
    return {str(key): value for key, value in loaded.items()}


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`data` as dotted path -> value; empty mappings stay as values."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat


def near(name: str, known: Iterable[str]) -> str:
    """A hint ` (did you mean ...?)` with the names most like `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes, with Hydra's errors turned into one line each."""
    prepared = _prepare(name, overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3", job_name=name):
            return hydra_compose(config_name=name, overrides=prepared)
    except MissingConfigException as error:
        raise UserError(_explain_missing(error)) from None
    except OverrideParseException as error:
        shown = (error.override or "").removeprefix("++")
        raise UserError(f"cannot read {shown!r}: write key=value, special characters as key=\"'value'\"") from None
    except HydraException as error:
        raise UserError(_explain_hydra(error)) from None
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be composed: {_first_line(error)}") from None


def _prepare(name: str, overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra wants them.

    A choice of digits alone is quoted, since Hydra takes it for a number. Settings may be ones that only the
    configuration classes know, since a default stands in one place: they are added, and the classes refuse what they do
    not know. And an experiment brings along the file that it has for the chosen stage.
    """
    groups = config_groups()
    chosen = _default_choices(name)
    prepared = []
    for override in overrides:
        match = re.fullmatch(r"(~|\+{0,2})([^=]+)(?:=(.*))?", override, re.DOTALL)
        if match is None or (match[3] is None and match[1] != "~"):
            raise UserError(f"cannot read {override!r}: write settings as key=value")
        prefix, key, value = match[1], match[2].strip(), match[3]
        if key in ("experiment", "stage") and key in chosen:
            chosen[key] = value
        elif key in groups and value is not None and value.isdigit():
            prepared.append(f"{prefix}{key}='{value}'")
        elif key in groups or prefix:
            prepared.append(override)
        else:
            prepared.append(f"++{override}")
    experiment, stage = chosen.get("experiment"), chosen.get("stage")
    if stage is not None and stage != MISSING:
        prepared.append(f"stage='{stage}'")
    if experiment is not None and stage is not None:
        if experiment not in groups["experiment"]:
            raise UserError(f"experiment={experiment} is unknown: choose one of {', '.join(groups['experiment'])}")
        for_stage = f"{experiment}/{stage}"
        exists = (config_folder() / "experiment" / f"{for_stage}.yaml").is_file()
        prepared.append(f"experiment=[{experiment},{for_stage}]" if exists else f"experiment={experiment}")
        prepared.insert(0, f"++name={experiment}")
    return prepared


def _default_choices(name: str) -> dict[str, Any]:
    """Group -> choice from the defaults list of the YAML file `name`."""
    entries = read_yaml(config_folder() / f"{name}.yaml").get("defaults", [])
    return {group: choice for entry in entries if isinstance(entry, dict) for group, choice in entry.items()}


def _explain_missing(error: MissingConfigException) -> str:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    options = config_groups().get(group.strip("/"))
    if options is None:
        return f"the configuration cannot be composed: {_first_line(error)}"
    return f"{group.strip('/')}={choice} is unknown: choose one of {', '.join(options)}"


def _explain_hydra(error: HydraException) -> str:
    text = str(error)
    groups = config_groups()
    missing = re.search(r"You must specify '([^']+)'", text)
    if missing:
        return f"{missing[1]} has no default: say {missing[1]}=CHOICE with one of {', '.join(groups[missing[1]])}"
    wrong = re.search(r"Could not override '([^']+)'", text)
    if wrong:
        return f"{wrong[1]} does not apply here: this configuration has no group of that name"
    return f"the configuration cannot be composed: {_first_line(error)}"


def _explain(item: Any, data: Mapping[str, Any], cls: Any) -> str:
    """One pydantic error as `path: what is wrong`, without the tags of unions that pydantic puts into the path."""
    parts: list[str] = []
    cursor: Any = data
    location = item["loc"]
    for index, part in enumerate(location):
        inside = (isinstance(cursor, Mapping) and part in cursor) or (
            isinstance(cursor, Sequence) and isinstance(part, int) and part < len(cursor)
        )
        if inside:
            parts.append(str(part))
            cursor = cursor[part]
        elif index == len(location) - 1:
            parts.append(str(part))
    path = ".".join(parts) or "the configuration"
    if item["type"] == "extra_forbidden":
        # Another class of a union may know the key.
        return f"{path}: unknown key{near(parts[-1], _fields(cls, parts[:-1]) - {parts[-1]})}"
    if item["type"] == "missing":
        return f"{path}: must be given"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if isinstance(item["input"], Mapping | BaseModel):
        return f"{path}: {message}"
    return (
        f"{path}: {item['input']!r} is wrong, it {message}"
        if message.startswith("should")
        else (f"{path}: {item['input']!r}: {message}")
    )


def _fields(annotation: Any, path: Sequence[str]) -> set[str]:
    """Names of the fields that the configuration classes within `annotation` have at `path`."""
    classes = _classes(annotation)
    if not path:
        return {name for cls in classes for name in cls.model_fields}
    fields = [cls.model_fields[path[0]] for cls in classes if path[0] in cls.model_fields]
    return {name for field in fields for name in _fields(field.annotation, path[1:])}


def _classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [cls for part in get_args(annotation) for cls in _classes(part)]


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
