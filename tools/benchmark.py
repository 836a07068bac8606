"""Measure this project against its goals and its peers, side by side in one run.

    python tools/benchmark.py data|decode|training [--json FILE] [--quick] [--work DIR]

`decode --model DIR` also says what bf16 and int8 cost the model in a release folder. Nothing else should run meanwhile.
"""

from functools import partial
from pathlib import Path

from benchmarks.data import measure_data
from benchmarks.decode import measure_decode
from benchmarks.rows import save, show
from benchmarks.training import measure_training

from mentor.errors import Arguments, UserError, check_output, run_main

SUBJECTS = {"data": measure_data, "decode": measure_decode, "training": measure_training}


def main() -> None:
    """Measure, print a table and write it as JSON if asked to."""
    parser = Arguments(description="Measure this project against its goals and its peers.")
    parser.add_argument("subject", choices=list(SUBJECTS), help="what is measured")
    parser.add_argument("--json", type=Path, help="where the rows are written")
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, for a first look")
    parser.add_argument("--work", type=Path, default=Path("data/benchmark"), help="scratch folder, made if missing")
    parser.add_argument("--model", type=Path, help="decode: release folder of a trained generator")
    arguments = parser.parse_args()
    measure = SUBJECTS[arguments.subject]
    if arguments.model is not None:
        if arguments.subject != "decode":
            raise UserError(f"--model is for decode alone, {arguments.subject} has no use for it: leave it out")
        measure = partial(measure_decode, model=arguments.model)
    check_output(arguments.work)
    if arguments.json is not None:
        check_output(arguments.json.parent)
    rows = measure(arguments.work, arguments.quick)
    show(arguments.subject.capitalize() + (" (quick)" if arguments.quick else ""), rows)
    if arguments.json is not None:
        save(arguments.json, arguments.subject, rows, {"quick": arguments.quick})


if __name__ == "__main__":
    run_main(main)
