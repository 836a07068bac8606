"""The HTML page about a data set: everything is in it, it loads nothing, and it trusts no text of the data."""

import base64
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from mentor.config import flatten
from mentor.data.inspecting import sheets
from mentor.data.inspecting.histograms import chart
from mentor.data.inspecting.survey import Survey
from mentor.data.records import Record, UnusableSample
from mentor.data.tasks import REQUIREMENTS
from mentor.data.tensors import to_pixels
from mentor.errors import UserError
from mentor.types import Example, TextSegment

SPLIT_NAMES = {"train": "train", "heldout": "held-out"}
MOST_NAMES, MOST_FAULTS, MOST_ATTRIBUTES = 12, 10, 2000
# A picture of no more colours than this, such as a small one enlarged, is kept exactly.
FEW_COLOURS = 8192


@dataclass
class Shown:
    """Some records of a split, and why others could not be read."""

    records: list[Record] = field(default_factory=list)
    faults: list[UnusableSample] = field(default_factory=list)


@dataclass
class Asked:
    """What a task makes of a data set.

    Attributes:
        usable: for each split, how many records it can use, or why it can use none.
        examples: some of them.
        faults: why an example could not be made of a record that was chosen.
    """

    usable: dict[str, int | str] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    faults: list[UserError] = field(default_factory=list)


def render_page(
    root: Path,
    manifest: Mapping[str, Any],
    survey: Survey,
    shown: Mapping[str, Shown],
    asked: Mapping[str, Asked],
    command: str,
) -> str:
    """The HTML; every text that comes from the data is escaped and shortened."""
    recipe = manifest["recipe"]
    sections = [
        ("Data set", _rows(summary(manifest)) + _settings(manifest)),
        ("Dropped", _dropped(manifest.get("dropped"))),
        ("Statistics", _statistics(survey)),
        ("Tasks", _usable(asked, manifest)),
        *(
            (
                f"Records: {SPLIT_NAMES[split]}",
                _faults(some.faults) + _cards([_record_card(record) for record in some.records]),
            )
            for split, some in shown.items()
        ),
        *(
            (f"Task: {task}", _faults(made.faults) + _cards([_example_card(example) for example in made.examples]))
            for task, made in asked.items()
            if made.examples or made.faults
        ),
    ]
    sections = [(title, body) for title, body in sections if body]
    return PAGE.substitute(
        title=_text(str(recipe.get("name", "data set"))),
        folder=_text(str(root)),
        links=" ".join(f'<a href="#s{index}">{title}</a>' for index, (title, _) in enumerate(sections)),
        sections="\n".join(
            f'<section id="s{index}"><h2>{title}</h2>{body}</section>' for index, (title, body) in enumerate(sections)
        ),
        command=escape(command),
    )


def summary(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says of the data set, name -> value; what it does not say is left out."""
    recipe, files = manifest["recipe"], manifest["files"]
    rows = {split: [row["samples"] for row in files if row["split"] == split] for split in SPLIT_NAMES}
    size, samples = sum(row["bytes"] for row in files), sum(map(sum, rows.values()))
    shards = [count for counts in rows.values() for count in counts]
    layout = manifest["layout"]
    picture = layout.get("picture") or ", ".join(layout.get("image", ()))
    if picture in ("jpg", "webp") and "quality" in layout:
        picture += f", quality {layout['quality']}"
    facts = {
        "Description": recipe.get("description"),
        "Licence": recipe.get("licence") or recipe.get("license"),
        "Samples": ", ".join(f"{sum(counts):,} {SPLIT_NAMES[split]}" for split, counts in rows.items()),
        "Shards": ", ".join(f"{len(counts):,} {SPLIT_NAMES[split]}" for split, counts in rows.items())
        + f" ({min(shards):,} to {max(shards):,} samples each)",
        "Size": f"{size / 1e6:,.1f} MB ({size / 1e3 / max(1, samples):,.1f} kB a sample)",
        "Picture format": picture,
        "Kind": manifest["kind"],
        "Fingerprint": manifest["fingerprint"],
        "Schema version": manifest["schema_version"],
        "Made by": f"mentor {manifest['version']}" if manifest.get("version") else None,
    }
    return {name: value for name, value in facts.items() if value}


def _settings(manifest: Mapping[str, Any]) -> str:
    inputs = {f"input {name}": what for name, what in (manifest.get("inputs") or {}).items()}
    return (
        f"<details><summary>Every setting of the recipe</summary>{_rows({**flatten(manifest['recipe']), **inputs})}"
        "</details>"
    )


def _dropped(dropped: Mapping[str, int] | None) -> str:
    """What of the sources did not come into the records, by reason; nothing where the manifest does not say."""
    if dropped is None:
        return ""
    if not any(dropped.values()):
        return "<p>Nothing was dropped.</p>"
    rows = {reason: f"{count:,}" for reason, count in sorted(dropped.items(), key=lambda row: (-row[1], row[0]))}
    return f"<p>What the sources held and the records do not, whole items or parts of them.</p>{_rows(rows)}"


def _statistics(survey: Survey) -> str:
    described = "all" if survey.described == survey.total else f"{survey.described:,} drawn by lot of"
    pictured = "all" if survey.pictured == survey.total else f"{survey.pictured:,} drawn by lot of"
    charts = (
        ("Width, px", survey.widths),
        ("Height, px", survey.heights),
        ("Width / height", survey.ratios),
        ("Captions a record", survey.captions),
        ("Words a caption", survey.caption_words),
        ("Objects a record", survey.objects),
        ("Mask, % of the picture", survey.areas),
        ("Views a record", survey.views),
    )
    lists = (
        ("Object names", survey.names),
        ("Subjects", survey.subjects),
        ("Captions begin", survey.beginnings),
        ("Licences", survey.licences),
    )
    unmasked = f" {survey.unmasked:,} of their objects have no mask." if survey.unmasked else ""
    return (
        f"<p>Words from {described} {survey.total:,} records, pictures and masks from {pictured} "
        f"{survey.total:,}.{unmasked}</p>{_faults(survey.unreadable)}"
        f'<div class="charts">{"".join(chart(name, values) for name, values in charts)}</div>'
        f'<div class="lists">{"".join(_most_frequent(name, counter) for name, counter in lists)}</div>'
    )


def _most_frequent(title: str, counter: Counter[str]) -> str:
    """The names seen most often, with bars, and how many different ones there are; nothing if there is none."""
    if not counter:
        return ""
    # The name decides between equal counts, so that the page does not depend on the order of reading.
    leading = sorted(counter.items(), key=lambda row: (-row[1], row[0]))[:MOST_NAMES]
    lines = "".join(
        f'<li style="--share:{100 * count / leading[0][1]:.1f}%"><span dir="auto">{_text(name) or "(empty)"}</span>'
        f"<b>{count:,}</b></li>"
        for name, count in leading
    )
    return f"<div><h3>{title} <small>{len(counter):,} different</small></h3><ol>{lines}</ol></div>"


def _usable(asked: Mapping[str, Asked], manifest: Mapping[str, Any]) -> str:
    """A row for each task: what it needs and how many records of each split it can use."""
    totals = Counter[str]()
    for row in manifest["files"]:
        totals[row["split"]] += row["samples"]
    splits = [split for split in SPLIT_NAMES if totals[split]]
    head = "".join(f"<th>{SPLIT_NAMES[split]}</th>" for split in splits)
    lines = []
    for task, made in asked.items():
        cells = ""
        for split in splits:
            count = made.usable[split]
            if isinstance(count, str):
                cells += "<td>none</td>"
            else:
                cells += f"<td>{count:,} <small>{count / totals[split]:.0%}</small></td>"
        lines.append(f'<tr><th scope="row">{task}</th><td>{escape(REQUIREMENTS[task])}</td>{cells}</tr>')
    reasons = [why for made in asked.values() for why in made.usable.values() if isinstance(why, str)]
    why = f"<details><summary>Why none</summary>{_list(reasons)}</details>" if reasons else ""
    return (
        "<p>How many records each task can use.</p>"
        f'<div class="scroll"><table><thead><tr><th>Task</th><th>Needs</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{why}"
    )


def _record_card(record: Record) -> str:
    """A record: picture and views with masks outlined, captions, objects in the colours of their outlines."""
    pictures = [_figure(sheets.outlined(record.image, [thing.mask for thing in record.objects]), "picture")]
    for view in record.views[: sheets.MOST_LINES]:
        pictures.append(_figure(sheets.outlined(view.image, [view.mask]), "view"))
    captions = "".join(f'<p dir="auto">{_text(line)}</p>' for line in sheets.some(record.captions))
    objects = []
    for index, thing in enumerate(record.objects[: sheets.MOST_LINES]):
        colour = "#{:02x}{:02x}{:02x}".format(*sheets.OUTLINES[index % len(sheets.OUTLINES)])
        phrase = f" <small>({_text(thing.phrase)})</small>" if thing.phrase else ""
        mark = "<small>no mask</small>" if thing.mask is None else f'<i style="background:{colour}"></i>'
        objects.append(f"<li>{mark} {_text(thing.name)}{phrase}</li>")
    more = len(record.objects) - len(objects)
    if more:
        objects.append(f"<li>... and {more} more</li>")
    height, width = record.image.shape[:2]
    facts = [_text(record.key), f"{width} x {height} px"]
    facts += [f"subject: {_text(record.subject)}"] if record.subject else []
    facts += [f"only for {_text(', '.join(record.tasks))}"] if record.tasks else []
    attributes = json.dumps(dict(record.attributes), ensure_ascii=False, indent=1, default=str)
    return (
        f'<article><div class="row">{"".join(pictures)}</div>{captions}<ul>{"".join(objects)}</ul>'
        f'<p class="soft">{" &middot; ".join(facts)}</p><details><summary>attributes</summary>'
        f"<pre>{escape(attributes[:MOST_ATTRIBUTES])}</pre></details></article>"
    )


def _example_card(example: Example) -> str:
    """An example: the prompt with its pictures in their places, an arrow, the target."""
    prompt = "".join(
        _lines(segment.text)
        if isinstance(segment, TextSegment)
        else _picture(sheets.enlarged(to_pixels(segment.image)), "reference")
        for segment in example.prompt
    )
    target = _picture(sheets.enlarged(to_pixels(example.target)), "target")
    return (
        f'<article class="example"><div class="prompt" dir="auto">{prompt}</div><div class="arrow">&rarr;</div>'
        f'<div>{target}</div><p class="soft">{_text(example.key)}</p></article>'
    )


def _lines(text: str) -> str:
    """Text of a prompt, which keeps its breaks and the blanks at its ends, as pictures stand beside them."""
    return "\n".join(" " * line.startswith(" ") + _text(line) + " " * line.endswith(" ") for line in text.split("\n"))


def _faults(faults: Sequence[UserError]) -> str:
    """How many records could not be used, counted by reason, and the messages of the first."""
    if not faults:
        return ""
    reasons = Counter(fault.reason for fault in faults if isinstance(fault, UnusableSample))
    counted = ", ".join(f"{count:,} {_text(reason)}" for reason, count in sorted(reasons.items()))
    return (
        f'<div class="fault"><p>{len(faults):,} could not be used{f" ({counted})" if counted else ""}:</p>'
        f"{_list([str(fault) for fault in faults[:MOST_FAULTS]])}</div>"
    )


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _cards(cards: Sequence[str]) -> str:
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _rows(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_text(str(name))}</th><td>{_text(str(value))}</td></tr>' for name, value in facts.items()
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def _text(text: str) -> str:
    return escape(sheets.shortened(text))


def _figure(picture: Image.Image, name: str) -> str:
    return f"<figure>{_picture(picture, name)}<figcaption>{name}</figcaption></figure>"


def _picture(picture: Image.Image, name: str) -> str:
    """A picture inside the page."""
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=80, lossless=picture.getcolors(FEW_COLOURS) is not None)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img src="data:image/webp;base64,{data}" width="{picture.width}" height="{picture.height}" alt="{name}">'


PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5d6b7a; --line: #dfe5eb; --wash: #f6f8fa; --paper: #fff;
  --mark: #1b6ca8; --fill: #d5e6f3; --fault: #a8321f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ed; --soft: #97a4b1; --line: #303a44; --wash: #1b2229;
  --paper: #12171c; --mark: #5aa5dd; --fill: #1f4560; --fault: #f0907e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.25rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; }
h2 { margin: 2.25rem 0 .5rem; font-size: 1.25rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { margin: 1rem 0 .4rem; font-size: 1rem; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
small, .soft, figcaption small, .axis { color: var(--soft); font-weight: 400; }
nav { margin: .75rem 0; font-size: .9rem; line-height: 1.9; }
nav a { color: var(--mark); margin-right: .9rem; white-space: nowrap; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 500; }
.facts th { width: 30%; font-weight: 600; }
.facts td { overflow-wrap: anywhere; }
.charts, .lists { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem 1.5rem; }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(15rem, 45%), 1fr)); }
figure { margin: 0; }
.chart figcaption { font-size: .9rem; font-weight: 600; color: var(--ink); }
.chart figcaption small { display: block; font-size: .8rem; }
.chart svg { display: block; width: 100%; height: 4.5rem; border-bottom: 1px solid var(--soft); fill: var(--mark); }
.axis { display: flex; justify-content: space-between; font-size: .75rem; }
.one { font-size: 1.5rem; margin: 0; }
.one small { font-size: .9rem; }
ol, ul { list-style: none; margin: 0; padding: 0; }
ol li { display: flex; justify-content: space-between; gap: 1rem; padding: .1rem .4rem; margin-bottom: 2px;
  font-size: .9rem; background: linear-gradient(to right, var(--fill) var(--share), transparent 0); }
ol b { font-weight: 500; white-space: nowrap; font-variant-numeric: tabular-nums; }
li { overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1rem; }
article { border: 1px solid var(--line); border-radius: 8px; padding: .7rem; background: var(--wash);
  font-size: .9rem; line-height: 1.4; min-width: 0; }
article .soft, figcaption { font-size: .75rem; color: var(--soft); }
.row { display: flex; flex-wrap: wrap; gap: .4rem; }
.row figure { flex: 1 1 5.5rem; max-width: 12rem; }
img { max-width: 100%; height: auto; display: block; image-rendering: pixelated; border-radius: 3px; }
article i { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-right: .2rem; }
.example { display: grid; grid-template-columns: 1fr auto 1fr; gap: .6rem; align-content: start; }
.example .soft { grid-column: 1 / -1; margin: 0; }
.prompt { white-space: pre-line; overflow-wrap: anywhere; min-width: 0; }
.prompt img { margin: .25rem 0; display: inline-block; max-width: 85%; vertical-align: bottom; }
.arrow { align-self: center; color: var(--soft); font-size: 1.4rem; }
.fault { color: var(--fault); font-size: .9rem; margin: .5rem 0; }
details { margin: .5rem 0 0; }
summary { cursor: pointer; color: var(--soft); font-size: .85rem; }
pre { font-size: .75rem; white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="soft">$folder</p>
<nav>$links</nav>
$sections
<section><h2>Make this page again</h2>
<pre>$command</pre>
</section>
</body>
</html>
""")
