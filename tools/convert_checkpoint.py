"""Make a release folder of a checkpoint of another project, or a checkpoint of a release folder.

python tools/convert_checkpoint.py llamagen_vq vq_ds16_t2i.pt runs/vq16 --image-size 512
python tools/convert_checkpoint.py taming_vqgan last.ckpt runs/vqgan
python tools/convert_checkpoint.py llamagen_gpt c2i_B_256.pt runs/c2i --image-tokenizer runs/vq16
python tools/convert_checkpoint.py llamagen_vq runs/vq16 vq16.pt --to llamagen      the way back, bit by bit
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from mentor.conversion.converting import Given, Kind, convert, convert_back
from mentor.conversion.mapping import Report
from mentor.errors import Arguments, run_main


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, and say what became of every tensor."""
    parser = Arguments(
        prog="convert_checkpoint.py",
        description="Make a release folder of a checkpoint of another project, or the other way round.",
        epilog="Example: python tools/convert_checkpoint.py llamagen_vq vq_ds16_t2i.pt runs/vq16 --image-size 512",
    )
    add = parser.add_argument
    add("kind", choices=get_args(Kind), help="what the checkpoint holds")
    add("source", type=Path, help="the checkpoint file (with --to: the release folder)")
    add("output", type=Path, help="the release folder to write (with --to: the file, .pt or .safetensors)")
    add("--to", choices=("mentor", "llamagen"), default="mentor", help="llamagen converts back (default: mentor)")
    add("--image-size", type=int, metavar="PX", help="side of the pictures (default: the image tokenizer's, or 256)")
    add("--part", metavar="NAME", help="which weights of the file to take, such as model or ema")
    add("--image-tokenizer", type=Path, metavar="DIR", help="release folder of the tokenizer a generator draws for")
    add("--heads", type=int, default=0, metavar="N", help="query heads of a generator (default: the published size's)")
    add("--text-encoder", metavar="DIR", help="folder or hub name of the encoder that reads a generator's text")
    add("--vision-encoder", metavar="DIR", help="folder or hub name of the encoder that reads its images")
    options = parser.parse_args(arguments)
    if options.to == "llamagen":
        report = convert_back(options.kind, options.source, options.output)
    else:
        given = Given(
            options.image_size,
            options.part,
            options.image_tokenizer,
            options.heads,
            options.text_encoder,
            options.vision_encoder,
        )
        report = convert(options.kind, options.source, options.output, given)
    show(report, options.output)


def show(report: Report, output: Path) -> None:
    """Print what became of the tensors."""
    print(f"{output}: {report.tensors:,} tensors, {report.parameters:,} parameters")
    for reason, names in report.left_out.items():
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        print(f"left out {len(names):,}, {reason} ({shown})")
    for note in report.notes:
        print(note)


if __name__ == "__main__":
    run_main(main)
