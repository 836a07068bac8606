"""Model cards: what a release says of itself, for people as Markdown and for the hub as the YAML in front of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from mentor.hub import is_hub_name

# Stands in the example on a card until the release has a name on the hub.
PLACE = "path/to/this/folder"
LICENCE = "## Licence"

_PROMPT = "a large apple at the left on a blue background"


@dataclass(frozen=True)
class Card:
    """What a release says of itself beside its weights; all values are plain and go into config.json and README.md.

    Attributes:
        licence: of the weights, as the hub names licences (apache-2.0, cc-by-4.0, other, ...).
    """

    title: str
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    samples: Image.Image | None = None
    licence: str = "apache-2.0"


def render_card(card: Card, config: Mapping[str, Any], parameters: int) -> str:
    """The model card as Markdown: what it is, how to use it, what it was trained on, what it scores, its limits."""
    size = f"{parameters / 1e6:.2f} M" if parameters >= 1e6 else f"{parameters:,}"
    kind = config["kind"].replace("_", " ").capitalize()
    lines = [f"# {card.title}", "", f"{kind}, {size} parameters, {config['image_size']} px."]
    if config["kind"] == "adapter":
        base = config["base"]
        lines += ["", f"For the model {base['name']} with the fingerprint {base['fingerprint']} alone."]
    if card.samples is not None:
        lines += ["", "![samples](samples.png)"]
    lines += _example(config)
    for heading, facts in (("Training", card.training), ("Data", card.data), ("Metrics", card.metrics)):
        if facts:
            lines += ["", f"## {heading}", "", "| | |", "| --- | --- |"]
            lines += [f"| {name} | {_cell(value)} |" for name, value in facts.items()]
    lines += ["", *licence_section(card.licence, card.data)]
    lines += ["", "## Limits", ""]
    lines.append("It draws what its training data shows and little else; check its pictures before use.")
    return join_card(front_matter(card, config), "\n".join(lines) + "\n")


def front_matter(card: Card, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the hub reads from a card: library, licence, task, tags, the model that an adapter is for, and metrics."""
    task = _task(config)
    facts: dict[str, Any] = {"library_name": "mentor", "license": card.licence}
    if task is not None:
        facts["pipeline_tag"] = task
    facts["tags"] = ["mentor", config["kind"].replace("_", "-")]
    if config["kind"] == "adapter" and is_hub_name(base := str(config["base"]["name"])):
        facts |= {"base_model": base.split("@")[0], "base_model_relation": "adapter"}
    # What was measured on the training data itself is no result.
    numbers = {name: value for name, value in card.metrics.items() if not name.startswith("train/")}
    numbers = {name: value for name, value in numbers.items() if isinstance(value, int | float)}
    finite = {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
    if finite:
        # The hub wants a name and a type of the data; that of a folder is both.
        name = Path(str(card.data.get("root", "unknown"))).name or "unknown"
        data = {"type": name, "name": name}
        if card.data.get("fingerprint"):
            data["revision"] = str(card.data["fingerprint"])
        metrics = [{"type": metric, "value": value} for metric, value in finite.items()]
        result = {"task": {"type": task or "image-to-image"}, "dataset": data, "metrics": metrics}
        facts["model-index"] = [{"name": card.title, "results": [result]}]
    return facts


def licence_section(licence: str, data: Mapping[str, Any]) -> list[str]:
    """Lines that say under which licence the weights are, and what is known of that of the data."""
    said = f"The weights: {licence}."
    if data:
        known = data.get("licence")
        said += f" The training data: {known}." if known else " That of the training data is not recorded here."
    return [LICENCE, "", said]


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """The YAML in front of a card, and the Markdown after it.

    Raises:
        ValueError: what stands in front is no mapping in YAML.
    """
    if not text.startswith("---\n"):
        return {}, text
    front, found, body = text[4:].partition("\n---\n")
    try:
        facts = yaml.safe_load(front) if found else None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    if not isinstance(facts, dict):
        raise ValueError("what stands between its first two --- is no list of names and values")
    return facts, body.removeprefix("\n")


def join_card(facts: Mapping[str, Any], body: str) -> str:
    """A card of its YAML and its Markdown."""
    front = yaml.safe_dump(dict(facts), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{front}---\n\n{body}"


def _task(config: Mapping[str, Any]) -> str | None:
    """The hub's name of what a release does; none where it has no name for it."""
    if config["kind"] == "image_tokenizer" or _kind_of_prompts(config) == "class_label":
        return None
    return "text-to-image"


def _kind_of_prompts(config: Mapping[str, Any]) -> str | None:
    return config.get("generator", {}).get("conditioner", {}).get("kind")


def _example(config: Mapping[str, Any]) -> list[str]:
    """How the release is used, as Python."""
    match config["kind"]:
        case "generator":
            loading = f'model = load("{PLACE}")'
        case "adapter":
            loading = f'model = load("{config["base"]["name"]}", adapters=["{PLACE}"])'
        case _:
            return []
    prompt = "3" if _kind_of_prompts(config) == "class_label" else _PROMPT
    drawing = f'pictures = generate(model, "{prompt}", num_images=4)'
    return ["", "```python", "from mentor.generate import generate, load", "", loading, drawing, "```"]


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
