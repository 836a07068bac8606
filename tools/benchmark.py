"""Measure this project against its goals and its peers, side by side in one run.

    python tools/benchmark.py data|decode|training [--json FILE] [--quick] [--work DIR]
    python tools/benchmark.py words --model DIR --model DIR [--json FILE] [--quick]
    python tools/benchmark.py adapters --model STAGE1 --model STAGE2 [--json FILE] [--quick]

`decode --model DIR` also says what bf16 and int8 cost the model in a release folder. `words` asks models that were
trained alike for pictures, in words that no training caption has. `adapters` tunes the demo's models in several ways.
Nothing else should run meanwhile.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.adapters import measure_adapters
from benchmarks.data import measure_data
from benchmarks.decode import measure_decode
from benchmarks.rows import Row, save, show
from benchmarks.training import measure_training
from benchmarks.words import measure_words

from mentor.errors import Arguments, UserError, check_output, run_main

SUBJECTS = {
    "adapters": measure_adapters,
    "data": measure_data,
    "decode": measure_decode,
    "training": measure_training,
    "words": measure_words,
}


def main() -> None:
    """Measure, print a table and write it as JSON if asked to."""
    parser = Arguments(description="Measure this project against its goals and its peers.")
    parser.add_argument("subject", choices=list(SUBJECTS), help="what is measured")
    parser.add_argument("--json", type=Path, help="where the rows are written")
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, for a first look")
    parser.add_argument("--work", type=Path, default=Path("data/benchmark"), help="scratch folder, made if missing")
    told = (
        "release folder of a trained generator: one for decode, two for adapters, any number for words (repeat --model)"
    )
    parser.add_argument("--model", type=Path, action="append", default=[], help=told)
    arguments = parser.parse_args()
    measure = choose(arguments.subject, arguments.model)
    check_output(arguments.work)
    if arguments.json is not None:
        check_output(arguments.json.parent)
    rows = measure(arguments.work, arguments.quick)
    show(arguments.subject.capitalize() + (" (quick)" if arguments.quick else ""), rows)
    if arguments.json is not None:
        save(arguments.json, arguments.subject, rows, {"quick": arguments.quick})


def choose(subject: str, models: Sequence[Path]) -> Callable[[Path, bool], list[Row]]:
    """What measures a subject, with the models that were given.

    Raises:
        UserError: the subject has no use for them, or for as many.
    """
    match subject, list(models):
        case "words", _:
            return partial(measure_words, models=models)
        case "adapters", _:
            return partial(measure_adapters, models=models)
        case _, []:
            return SUBJECTS[subject]
        case "decode", [model]:
            return partial(measure_decode, model=model)
        case "decode", _:
            raise UserError(f"decode measures one model, {len(models)} were given: say --model once")
        case _:
            raise UserError(f"--model is for adapters, decode and words, {subject} has no use for it: leave it out")


if __name__ == "__main__":
    run_main(main)
