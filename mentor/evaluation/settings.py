"""The settings of an evaluation, read from a command line."""

from collections.abc import Sequence

from mentor.config import compose_command, validate
from mentor.errors import UserError
from mentor.evaluation.config import EvaluationConfig
from mentor.hub import fetch
from mentor.models.checkpoint import read_config

USAGE = """python -m mentor.evaluate model=DIR data=DIR output=DIR [key=value ...]

Measures the release in model=DIR on the held-out shards in data=DIR and writes metrics.json, report.html and samples/
into output=DIR. A release of an image tokenizer alone gets the measures of the tokenizer.
  counts.subject=256     held-out examples of a task (0 leaves it out)
  sampling.subject.guidance=3   how a task's pictures are drawn
  adapter=DIR            an adapter of that model, DIR or DIR=STRENGTH; may be repeated
  runs=[runs/demo/1,runs/demo/2]   training runs whose loss curves are shown (default: those beside the model's)
--cfg prints all settings."""

FOLDERS = ("model", "data", "output")


def read_settings(arguments: Sequence[str]) -> EvaluationConfig:
    """The settings of a command line.

    Raises:
        UserError: a folder is not given, or a setting is unknown or wrong.
    """
    # The folders never pass through Hydra: `data` names a group of training's there, and paths may hold what
    # its grammar gives a meaning to.
    given = {name: argument.partition("=")[2] for argument in arguments for name in FOLDERS if _sets(argument, name)}
    adapters = [argument.partition("=")[2] for argument in arguments if _sets(argument, "adapter")]
    others = [argument for argument in arguments if not any(_sets(argument, name) for name in (*FOLDERS, "adapter"))]
    if not any(_sets(argument, "sampling") for argument in others):
        others.insert(0, f"sampling={_kind(given.get('model'))}")
    composed = compose_command("evaluate", others, USAGE)
    missing = [name for name in FOLDERS if not given.get(name)]
    if missing:
        raise UserError(f"{missing[0]} has no default: say {missing[0]}=DIR (--help explains all settings)")
    return validate(EvaluationConfig, composed | given | {"adapters": [*composed["adapters"], *adapters]})


def _kind(model: str | None) -> str:
    """What a release draws by, which says how it is drawn from; codes where nothing is said."""
    if not model:
        return "ar"
    try:
        config = read_config(fetch(model))
    except UserError:
        return "ar"  # the next one who reads it says what is wrong
    return config.get("generator", {}).get("head", {}).get("kind", "ar")


def _sets(argument: str, name: str) -> bool:
    return argument.startswith(f"{name}=")
