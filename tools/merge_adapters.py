"""Make one release folder of a model and adapters of it, which then needs them no longer.

python tools/merge_adapters.py runs/demo/2/release runs/merged --adapter runs/lora_subject/2/release=0.8
"""

from collections.abc import Sequence
from pathlib import Path

from mentor.adapters import attach, load_adapters
from mentor.errors import Arguments, UserError, check_output, run_main
from mentor.models.checkpoint import Card, load_generator, save_generator


def main(arguments: Sequence[str] | None = None) -> None:
    """Merge, and say where the release is."""
    parser = Arguments(prog="merge_adapters.py", description="Make one release folder of a model and adapters of it.")
    parser.add_argument("model", type=Path, help="release folder of a generator")
    parser.add_argument("output", type=Path, help="the release folder to write")
    on_top = "release folder of an adapter of that model, DIR or DIR=STRENGTH; may be repeated"
    parser.add_argument("--adapter", action="append", required=True, metavar="DIR", help=on_top)
    options = parser.parse_args(arguments)
    if options.output.exists():
        raise UserError(f"{options.output} is there already: give the name of a folder that is not")
    check_output(options.output.parent)
    merge(options.model, options.output, options.adapter)
    print(f"{options.output}: {options.model} with {', '.join(options.adapter)}")


def merge(model: Path, output: Path, places: Sequence[str]) -> None:
    """Write the release of the model with the adapters in its weights.

    Raises:
        UserError: model or adapters cannot be read or do not fit, or an adapter does what weights cannot.
    """
    release = load_generator(model)
    applied = load_adapters(places, release, str(model))
    if not attach(release.generator, applied).merged:
        unfit = [str(each.adapter.folder) for each in applied if not each.adapter.config.mergeable]
        raise UserError(
            f"{', '.join(unfit)} acts while prompts are read (edits, or lora.preset=prefix_attn), which weights "
            "cannot: draw with --adapter instead"
        )
    named = {f"merged_adapter_{number}": place for number, place in enumerate(places, 1)}
    about = release.config
    card = Card(f"{model.name} with adapters", training=about["training"] | named, data=about["data"])
    save_generator(output, release.generator, release.image_tokenizer, release.image_size, card)


if __name__ == "__main__":
    run_main(main)
