"""A page about a data set: statistics, its records, and for each task prompt -> target; PNG sheets beside it.

python tools/inspect_shards.py DATA_DIR [--output DIR] [--num N] [--seed S]
"""

from pathlib import Path

from mentor.data.inspection import write_inspection
from mentor.errors import Arguments, run_main


def main() -> None:
    """Write the page and print its name."""
    parser = Arguments(description="A page of a data set's statistics, its records and what its tasks ask.")
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder with manifest.json")
    parser.add_argument("--output", type=Path, help="where the files go (default: DATA_DIR/inspection)")
    parser.add_argument("--num", type=int, default=12, help="records of a split, examples of a task (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="which records, and every choice of the tasks (default: 0)")
    arguments = parser.parse_args()
    output = arguments.output or arguments.data / "inspection"
    print(write_inspection(arguments.data, output, arguments.num, arguments.seed))


if __name__ == "__main__":
    run_main(main)
