"""Contact sheets: records with their masks outlined, and examples as prompt -> target, drawn on one picture."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mentor.data.records import Record
from mentor.data.tensors import to_pixels
from mentor.types import Example, TextSegment

OUTLINES = ((255, 0, 255), (0, 220, 255), (255, 160, 0), (0, 200, 0))
PICTURE, GAP, COLUMNS = 192, 12, 3
PROMPT = 2 * PICTURE
INK, FAINT, RULE, PAPER = (20, 20, 20), (120, 120, 120), (200, 200, 200), (255, 255, 255)
FONT = ImageFont.load_default(size=15)
LINE = 20

# What a card shows of a record that has very much of something.
MOST_LINES, MOST_LETTERS = 12, 400


def records_sheet(records: Sequence[Record]) -> Image.Image:
    """Records: picture and views with every mask outlined, captions, objects."""
    return stack([record_card(record) for record in records])


def examples_sheet(examples: Sequence[Example]) -> Image.Image:
    """Examples, each prompt -> target."""
    return stack([example_card(example) for example in examples])


def record_card(record: Record) -> Image.Image:
    """One record: its picture, then its views, over its captions and objects."""
    pictures = [outlined(record.image, [thing.mask for thing in record.objects])]
    pictures += [outlined(view.image, [view.mask]) for view in record.views[:MOST_LINES]]
    lines = [f"{record.key}  {record.subject}", *some(f'"{shortened(caption)}"' for caption in record.captions)]
    lines += some(f"- {thing.name}" + (f" ({thing.phrase})" if thing.phrase else "") for thing in record.objects)
    width = max(len(pictures), 3) * (PICTURE + GAP)
    text = [piece for line in lines for piece in wrapped(shortened(line), width - 2 * GAP)]
    card = Image.new("RGB", (width + GAP, PICTURE + 3 * GAP + LINE * len(text)), PAPER)
    for index, picture in enumerate(pictures):
        card.paste(picture, (GAP + index * (PICTURE + GAP), GAP))
    draw = ImageDraw.Draw(card)
    for index, line in enumerate(text):
        draw.text((GAP, PICTURE + 2 * GAP + index * LINE), line, INK, FONT)
    return card


def example_card(example: Example) -> Image.Image:
    """One example: the prompt as it reads, pictures in their places, an arrow, the target."""
    lines = prompt_lines(example, PROMPT)
    heights = [PICTURE + GAP if any(isinstance(part, Image.Image) for part in line) else LINE for line in lines]
    card = Image.new("RGB", (PROMPT + PICTURE + 6 * GAP, max(sum(heights), PICTURE) + 2 * GAP + LINE), PAPER)
    draw = ImageDraw.Draw(card)
    top = GAP
    for line, height in zip(lines, heights, strict=True):
        left = float(GAP)
        for part in line:
            if isinstance(part, str):
                draw.text((left, top + height - LINE - (height > LINE) * GAP), part, INK, FONT)
                left += FONT.getlength(part + " ")
            else:
                card.paste(part, (round(left), top))
                left += PICTURE + 4
        top += height
    middle, right = GAP + PICTURE // 2, PROMPT + 5 * GAP
    draw.line([(right - 4 * GAP, middle), (right - 2 * GAP, middle)], INK, 2)
    draw.polygon([(right - 2 * GAP, middle - 6), (right - 2 * GAP, middle + 6), (right - GAP, middle)], INK)
    card.paste(enlarged(to_pixels(example.target)), (right, GAP))
    draw.text((GAP, card.height - LINE - 2), f"{example.task} {example.key}", FAINT, FONT)
    return card


def prompt_lines(example: Example, width: int) -> list[list[str | Image.Image]]:
    """The prompt in lines of at most `width` pixels, broken where it breaks itself and where a line is full."""
    lines: list[list[str | Image.Image]] = [[]]
    used = 0.0

    def put(part: str | Image.Image, size: float) -> None:
        nonlocal used
        if used + size > width and lines[-1]:
            lines.append([])
            used = 0.0
        lines[-1].append(part)
        used += size

    for segment in example.prompt:
        if isinstance(segment, TextSegment):
            for number, paragraph in enumerate(segment.text.split("\n")):
                if number:
                    lines.append([])
                    used = 0.0
                for word in shortened(paragraph).split():
                    put(word, FONT.getlength(word + " "))
        else:
            put(enlarged(to_pixels(segment.image)), PICTURE + 4)
    return lines


def stack(cards: Sequence[Image.Image]) -> Image.Image:
    """The cards in columns, ruled off from each other."""
    width = max(card.width for card in cards)
    rows = [cards[first : first + COLUMNS] for first in range(0, len(cards), COLUMNS)]
    heights = [max(card.height for card in row) for row in rows]
    columns = min(COLUMNS, len(cards))
    sheet = Image.new("RGB", (columns * width, sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            sheet.paste(card, (column * width, top))
            draw.rectangle((column * width, top, (column + 1) * width - 1, top + height - 1), outline=RULE)
        top += height
    return sheet


def enlarged(pixels: np.ndarray) -> Image.Image:
    """The picture at `PICTURE` pixels on its longer side, its own pixels visible when it is small, thinly framed."""
    picture = Image.fromarray(pixels)
    factor = PICTURE / max(picture.size)
    kind = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    large = picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))), kind)
    ImageDraw.Draw(large).rectangle((0, 0, large.width - 1, large.height - 1), outline=RULE)
    return large


def outlined(pixels: np.ndarray, masks: Sequence[np.ndarray | None]) -> Image.Image:
    """The enlarged picture with a line just inside the edge of each mask, in `OUTLINES`' colours in their order."""
    picture = np.asarray(enlarged(pixels)).copy()
    for index, mask in enumerate(masks):
        if mask is None:
            continue
        large = Image.fromarray(mask.astype(np.uint8) * 255).resize(picture.shape[1::-1], Image.Resampling.NEAREST)
        inside = np.pad(np.asarray(large) > 127, 1)
        core = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        picture[inside[1:-1, 1:-1] & ~core] = OUTLINES[index % len(OUTLINES)]
    return Image.fromarray(picture)


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` pixels (a single long word keeps its line)."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and FONT.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def shortened(text: str) -> str:
    """The text on one line, cut off where it gets too long for a card, without what no file can hold."""
    clean = " ".join(text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ").split())
    return clean if len(clean) <= MOST_LETTERS else clean[: MOST_LETTERS - 1] + "…"


def some(lines: Iterable[str]) -> list[str]:
    """The first of the lines, and how many more there are."""
    every = list(lines)
    more = len(every) - MOST_LINES
    return every if more <= 0 else [*every[:MOST_LINES], f"... and {more} more"]
