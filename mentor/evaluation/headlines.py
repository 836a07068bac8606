"""The numbers a report leads with, what each is held against, and the least it should be."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    """One measure of the leading table.

    Attributes:
        key: in metrics.json.
        title: what it is called.
        meaning: what is measured, in a sentence.
        floor: the least it should be; None where it has none.
        below: key of the measure that the floor is counted from (a floor of -1.5 means "at most 1.5 less").
        unit: "dB", "share" or "s".
    """

    key: str
    title: str
    meaning: str
    floor: float | None = None
    below: str = ""
    unit: str = "share"

    def least(self, metrics: Mapping[str, float]) -> float | None:
        """The floor as a number, or None if there is none or what it is counted from was not measured."""
        if self.floor is None:
            return None
        if not self.below:
            return self.floor
        return metrics[self.below] + self.floor if self.below in metrics else None

    def passed(self, metrics: Mapping[str, float]) -> bool | None:
        """Whether the measure reaches its floor; None if it has no floor or was not measured."""
        least = self.least(metrics)
        return None if least is None or self.key not in metrics else metrics[self.key] >= least

    def beside(self, metrics: Mapping[str, float], suffix: str) -> float | None:
        """The same measure for `truth`, `ceiling`, `chance`, `nothing` or as `error`; None where there is none."""
        task, name = self.key.split("/")
        for key in (f"{self.key}_{suffix}", f"{task}/{suffix}_{name}"):
            if key in metrics:
                return metrics[key]
        return None


HEADLINES = (
    Headline(
        "tokenizer/psnr",
        "Image tokenizer",
        "PSNR of held-out pictures after a round trip through the codes",
        22.0,
        unit="dB",
    ),
    Headline("tokenizer/usage", "Codes in use", "share of the codebook that held-out pictures use", 0.9),
    Headline(
        "reconstruct/psnr",
        "Reconstruction",
        "PSNR of the picture drawn after seeing it; the ceiling is its round trip",
        -1.5,
        below="reconstruct/ceiling_psnr",
        unit="dB",
    ),
    Headline("segment/iou", "Segmentation", "IoU of the named object, drawn on black, with its true mask", 0.7),
    Headline(
        "text_to_image/prompt_following",
        "Text to image",
        "background and places of the objects both as the caption says, read off the pixels",
        0.75,
    ),
    Headline(
        "recover/psnr_gain",
        "Recovery",
        "dB nearer to the original than the distorted input, left as it is, would be",
        3.0,
        unit="dB",
    ),
    Headline(
        "subject/cp",
        "Subject kept (CP)",
        "the reference's own subject is found among held-out ones by comparing renderings",
        0.5,
    ),
    Headline("subject/pf", "Prompt followed (PF)", "background and places both as the prompt says", 0.7),
    Headline("subject/cp_pf", "CP x PF", "subject kept and prompt followed, the product of the two means"),
    Headline("seconds/total", "Time", "seconds", unit="s"),
)
