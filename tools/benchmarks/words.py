"""Words: does a model draw what a caption says in words that none of its training captions has?

Held-out captions on procedural backgrounds are read as they are, with one kind of word replaced by others that mean the
same, and with nonsense of equal length in their place, which tells what is left by guessing. The oracle of the
evaluation says whether what the replaced words asked for is there; all pictures of an example have one seed.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.rows import Row
from mentor.config import compose, validate
from mentor.data.order import seed_from
from mentor.data.storage.shards import ShardSet
from mentor.data.tensors import to_pixels
from mentor.errors import UserError
from mentor.evaluation.benchmarks import Contestant, draw, load_contestant, make_examples
from mentor.evaluation.config import EvaluationConfig
from mentor.evaluation.judges import background_of, places_of
from mentor.evaluation.oracles import SceneOracle, SceneReading
from mentor.models.packing import choose_precision, pack
from mentor.types import Example, TextSegment

TASK = "text_to_image"
Wording = Literal["trained words", "unseen words", "nonsense"]
WORDINGS: tuple[Wording, ...] = ("trained words", "unseen words", "nonsense")
SEEDS = (1, 2, 3)
# Words without a meaning of their own stay as they are in nonsense.
_SMALL = {"a", "an", "the", "on", "at", "in", "of", "to"}
# What may differ between models that were trained alike.
_OWN = {"conditioner.text_encoder", "conditioner.text_vocab_size"}


@dataclass(frozen=True)
class Kind:
    """A kind of word.

    Attributes:
        name: of the kind.
        unseen: a training word or phrase -> others that mean the same.
        asked: which of the training words an example's caption has.
        right: whether a picture shows what those words ask for.
    """

    name: str
    unseen: Mapping[str, tuple[str, ...]]
    asked: Callable[[Example], list[str]]
    right: Callable[[SceneReading, Example], bool]


KINDS = (
    Kind(
        "colours",
        {
            "red": ("scarlet", "crimson"),
            "orange": ("tangerine", "amber"),
            "yellow": ("golden", "saffron"),
            "green": ("emerald", "jade"),
            "blue": ("azure", "navy"),
            "purple": ("violet", "mauve"),
            "pink": ("fuchsia", "magenta"),
            "gray": ("silver", "slate"),
            "white": ("ivory", "alabaster"),
            "black": ("ebony", "onyx"),
        },
        lambda example: [example.facts["background"]["colour"]],
        lambda reading, example: reading.background.colour == example.facts["background"]["colour"],
    ),
    Kind(
        "patterns",
        {"stripes": ("lines", "bands"), "checks": ("squares", "chequers"), "dots": ("spots", "speckles")},
        lambda example: [example.facts["background"]["kind"]],
        lambda reading, example: reading.background.kind == example.facts["background"]["kind"],
    ),
    Kind(
        "places",
        {
            "in the middle": ("at the centre", "in the very centre"),
            "at the left": ("on the left side", "on the lefthand side"),
            "at the right": ("on the right side", "on the righthand side"),
            "at the top": ("in the upper part", "on the upper side"),
            "at the bottom": ("in the lower part", "on the lower side"),
        },
        places_of,
        lambda reading, example: reading.places == frozenset(places_of(example)),
    ),
)


def measure_words(work: Path, quick: bool, models: Sequence[Path] = ()) -> list[Row]:
    """A row for each kind of word, wording and model.

    Args:
        work: not used.
        quick: one seed and few examples.
        models: release folders of generators that were trained alike.

    Raises:
        UserError: there is no model, they were not trained alike, or a word that is meant to be unseen is not.
    """
    if not models:
        raise UserError("words are read by trained models: say --model DIR, once for each release folder")
    contestants = [load_contestant(folder) for folder in models]
    root = check_alike(contestants)
    texts = training_texts(ShardSet(root, "train"))
    for kind in KINDS:
        check_unseen(kind, texts)
    heldout, scenes = ShardSet(root, "heldout"), SceneOracle(contestants[0].image_size)
    for contestant in contestants:
        assert contestant.generator is not None
        pack(contestant.generator, choose_precision("fp32", contestant.device))
    rows = []
    for kind in KINDS:
        found: dict[tuple[Wording, int], list[list[bool]]] = {}
        for seed in SEEDS[:1] if quick else SEEDS:
            config = settings(seed)
            examples = [one for one in make_examples(TASK, heldout, config, scenes.size) if usable(kind, one)]
            examples = examples[: 16 if quick else 64]
            for wording in WORDINGS:
                asked = [reworded(kind, example, wording, texts, seed) for example in examples]
                for place, contestant in enumerate(contestants):
                    pictures = draw(contestant, TASK, asked, config.sampling_of(TASK), config, lambda *_: None)
                    read = [scenes.read(to_pixels(picture)) for picture in pictures]
                    answers = [kind.right(reading, example) for reading, example in zip(read, examples, strict=True)]
                    found.setdefault((wording, place), []).append(answers)
        for (wording, place), answers in found.items():
            rows.append(row_of(kind, wording, contestants[place], answers))
    return rows


def settings(seed: int) -> EvaluationConfig:
    """The evaluation's own settings; every held-out example may be chosen."""
    composed = compose("evaluate", [f"seed={seed}", f"counts.{TASK}=100000"])
    return validate(EvaluationConfig, composed | {"model": "-", "data": "-", "output": "-"})


def row_of(kind: Kind, wording: Wording, contestant: Contestant, answers: Sequence[Sequence[bool]]) -> Row:
    """The share of right answers, in percent, its range over the seeds and its standard error."""
    means = [100 * float(np.mean(each)) for each in answers]
    every = np.concatenate([np.array(each, dtype=np.float64) for each in answers])
    value, error = 100 * float(every.mean()), 100 * float(every.std() / np.sqrt(len(every)))
    note = f"standard error {error:.1f}, n {len(every)}, {len(answers)} seeds"
    return Row(f"{kind.name}, {wording}", name_of(contestant), "-", value, min(means), max(means), "%", None, note)


def name_of(contestant: Contestant) -> str:
    """What reads the model's text, and where the model is."""
    encoder = contestant.config["generator"]["conditioner"].get("text_encoder")
    return f"{'pretrained encoder' if encoder else 'BPE'} ({contestant.folder})"


def check_alike(contestants: Sequence[Contestant]) -> Path:
    """The data that all of them were trained on.

    Raises:
        UserError: they were trained on other data or with other settings, or one is no generator.
    """
    for one in contestants:
        if one.generator is None:
            raise UserError(f"{one.folder} holds an image tokenizer, which reads no words: give a generator's release")
    first = contestants[0]
    for other in contestants[1:]:
        differing = [f"data {name}" for name in ("root", "fingerprint") if _fact(first, name) != _fact(other, name)]
        ours, theirs = (dict(one.config["training"]) for one in (first, other))
        names = sorted((ours.keys() | theirs.keys()) - _OWN)
        differing += [name for name in names if ours.get(name) != theirs.get(name)]
        if differing:
            raise UserError(
                f"{first.folder} and {other.folder} were not trained alike ({', '.join(differing[:5])}): "
                "train both with the same settings, but for conditioner.text_encoder"
            )
    return Path(_fact(first, "root"))


def training_texts(shards: ShardSet) -> str:
    """All captions and names of objects of training, lower-case, a line each."""
    lines: set[str] = set()
    for shard, count in enumerate(shards.counts):
        for position in range(count):
            description = shards.description(shard, position)
            lines.update(description["captions"])
            lines.update(text for thing in description["objects"] for text in (thing["name"], thing["phrase"]))
    return "\n".join(sorted(line.lower() for line in lines))


def check_unseen(kind: Kind, texts: str) -> None:
    """Nothing, where none of the kind's words is in the texts of training.

    Raises:
        UserError: one is.
    """
    for words in kind.unseen.values():
        for word in words:
            if found := re.search(rf"^.*\b{re.escape(word)}\b.*$", texts, re.MULTILINE):
                raise UserError(f"{word!r} is no unseen word, training has it in {found.group()!r}: take another one")


def usable(kind: Kind, example: Example) -> bool:
    """Whether the caption has words of this kind."""
    return all(word in kind.unseen for word in kind.asked(example))


def reworded(kind: Kind, example: Example, wording: Wording, texts: str, seed: int) -> Example:
    """The example with its caption in another wording; the same whoever asks."""
    if wording == "trained words":
        return example
    rng = random.Random(seed_from("words", seed, example.key))
    caption, background = example.facts["caption"], background_of(example)
    assert caption.endswith(background)
    head, tail = caption[: -len(background)], background
    for word in sorted(set(kind.asked(example))):
        other = rng.choice(kind.unseen[word])
        if wording == "nonsense":
            other = " ".join(part if part in _SMALL else nonsense(len(part), texts, rng) for part in other.split())
        if kind.name == "places":
            head = head.replace(word, other)
        else:
            tail = with_article(re.sub(rf"\b{word}\b", other, tail))
    return replace(example, prompt=(TextSegment(head + tail),))


def nonsense(length: int, texts: str, rng: random.Random) -> str:
    """A word of so many letters that can be said and occurs nowhere in the texts."""
    while True:
        letters = [rng.choice("aeiou" if place % 2 else "bdfgklmnprstvz") for place in range(length)]
        word = "".join(letters)
        if word not in texts:
            return word


def with_article(phrase: str) -> str:
    """The phrase with the article that fits its next word, if it begins with one."""
    article, _, rest = phrase.partition(" ")
    return f"{'an' if rest[:1] in tuple('aeiou') else 'a'} {rest}" if article in ("a", "an") else phrase


def _fact(contestant: Contestant, name: str) -> Any:
    return contestant.config["data"].get(name)
