"""The report: one HTML file with everything in it, pictures included, that opens anywhere without a network."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template
from typing import Any

from mentor.evaluation.benchmarks import Case, Results
from mentor.evaluation.curves import Run, loss_svg
from mentor.evaluation.headlines import HEADLINES, Headline
from mentor.evaluation.oracles import Pixels
from mentor.evaluation.pictures import best, png_bytes, worst
from mentor.evaluation.style import STYLE

TASK_TITLES = {
    "reconstruct": "Reconstruction",
    "segment": "Segmentation",
    "text_to_image": "Text to image",
    "recover": "Recovery",
    "subject": "Subject-driven generation",
}

TASK_NOTES = {
    "reconstruct": "The picture is shown and asked for. The ceiling is the image tokenizer's own round trip.",
    "segment": "The named object is asked for on black. The mask is read by a threshold and compared with the truth.",
    "text_to_image": "A caption is given. Background and places are read off the pixels by rendering every procedural "
    "background and arrangement; prompts with photographs as backgrounds are left out, as no rendering can check them.",
    "recover": "An object, distorted and pasted on another picture, is shown; its original picture is asked for. "
    "The measure is the gain over leaving the input as it is.",
    "subject": "Another picture of a subject that training never saw is shown; the captioned picture is asked for. "
    "CP: the subject is found among as many held-out ones as stated, by rendering each reference's cut-out into the "
    "picture. PF: background and places as the prompt says (procedural backgrounds only).",
}

CHANCE_NOTE = (
    "Ground truth: the target picture itself, which tells what the measuring is worth. Ceiling: the target after a "
    "round trip through the image tokenizer; a generator of its codes can hardly beat it. Chance: the target of "
    "another example. Doing nothing: the input picture left as it is. All on held-out subjects; &plusmn; is the "
    "standard error of the mean."
)


@dataclass(frozen=True)
class About:
    """What a report says besides the results.

    Attributes:
        title: heading.
        command: how to make the report again.
        facts: name -> value rows about model, data and settings.
        runs: training runs whose curves are drawn.
        shown: examples of each task.
        extremes: best and worst examples of each task.
    """

    title: str
    command: str
    facts: Mapping[str, Any]
    runs: Sequence[Run]
    shown: int
    extremes: int


def render_report(results: Results, about: About) -> str:
    """The HTML of the report; all text that comes from outside is escaped."""
    return PAGE.substitute(
        style=STYLE,
        title=escape(about.title),
        verdict=render_verdict(results.metrics),
        headlines=render_headlines(results.metrics),
        note=CHANCE_NOTE,
        tasks="\n".join(render_task(task, cases, results.metrics, about) for task, cases in results.cases.items()),
        runs=render_runs(about.runs),
        facts=render_facts(about.facts),
        metrics=render_facts({name: shown(value) for name, value in sorted(results.metrics.items())}),
        command=escape(about.command),
    )


def render_verdict(metrics: Mapping[str, float]) -> str:
    """One sentence: how many floors are reached and which are not."""
    verdicts = {headline.title: headline.passed(metrics) for headline in HEADLINES if headline.floor is not None}
    missed = [title for title, passed in verdicts.items() if passed is False]
    absent = [title for title, passed in verdicts.items() if passed is None]
    reached = sum(passed is True for passed in verdicts.values())
    sentence = f"{reached} of {len(verdicts)} floors reached."
    if missed:
        sentence += f" Below the floor: {', '.join(missed)}."
    if absent:
        sentence += f" Not measured: {', '.join(absent)}."
    return escape(sentence)


def render_headlines(metrics: Mapping[str, float]) -> str:
    """The rows of the leading table."""
    return "\n".join(render_headline(headline, metrics) for headline in HEADLINES)


def render_headline(headline: Headline, metrics: Mapping[str, float]) -> str:
    """A row: measure, value, floor, whether it is reached, ground truth, ceiling, chance, doing nothing."""
    value = metrics.get(headline.key)
    error = headline.beside(metrics, "error")
    least = headline.least(metrics)
    passed = headline.passed(metrics)
    verdict = {True: '<td class="pass">reached</td>', False: '<td class="fail">not reached</td>', None: "<td></td>"}
    unit = "" if headline.unit == "share" else f" {headline.unit}"
    measured = "not measured" if value is None else f"{shown(value)}{unit}"
    spread = "" if error is None else f" <small>&plusmn; {error:.2f}</small>"
    rule = (
        ""
        if headline.floor is None
        else (shown(least) if least is not None else "?")
        + (f" <small>(ceiling {headline.floor:+g})</small>" if headline.below else "")
    )
    beside = "".join(
        f"<td>{shown(headline.beside(metrics, suffix))}</td>" for suffix in ("truth", "ceiling", "chance", "nothing")
    )
    return (
        f'<tr><th scope="row">{escape(headline.title)}<small>{escape(headline.meaning)}</small></th>'
        f"<td><b>{measured}</b>{spread}</td><td>{rule}</td>{verdict[passed]}{beside}</tr>"
    )


def render_task(task: str, cases: Sequence[Case], metrics: Mapping[str, float], about: About) -> str:
    """A task's section: what is measured, some cases as they come, the best and the worst."""
    count = int(metrics.get(f"{task}/count", len(cases)))
    candidates = f", {int(metrics['subject/candidates'])} candidates" if task == "subject" else ""
    parts = [
        f"<section><h2>{escape(TASK_TITLES.get(task, task))}</h2>",
        f"<p>{escape(TASK_NOTES.get(task, ''))} {count} examples{candidates}.</p>",
    ]
    for title, chosen in (
        ("As they come", cases[: about.shown]),
        ("Best", best(cases, about.extremes)),
        ("Worst", worst(cases, about.extremes)),
    ):
        if chosen:
            parts.append(f'<h3>{title}</h3><div class="cases">{"".join(map(render_case, chosen))}</div>')
    return "\n".join([*parts, "</section>"])


def render_case(case: Case) -> str:
    """A card: prompt, reference, target, output, scores."""
    named = (("reference", case.reference), ("target", case.target), ("output", case.output))
    figures = "".join(render_picture(name, pixels) for name, pixels in named if pixels is not None)
    scores = " ".join(f"{escape(name)} {value:.2f}" for name, value in case.scores.items())
    return (
        f'<article><p class="prompt">{escape(case.prompt)}</p><div class="row">{figures}</div>'
        f'<p class="scores" title="{escape(case.key)}">{scores}</p></article>'
    )


def render_picture(name: str, pixels: Pixels) -> str:
    """A figure with its picture inside the page."""
    data = base64.b64encode(png_bytes(pixels)).decode("ascii")
    height, width = pixels.shape[:2]
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(name)}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
    )


def render_runs(runs: Sequence[Run]) -> str:
    """The loss curves, one chart a run."""
    charts = [(run.name, loss_svg(run.losses)) for run in runs]
    drawn = [f"<div><h3>Run {escape(name)}</h3>{chart}</div>" for name, chart in charts if chart]
    if not drawn:
        return "<p>No training runs were given.</p>"
    return f'<div class="charts">{"".join(drawn)}</div><p>Dashed: held-out examples.</p>'


def render_facts(facts: Mapping[str, Any]) -> str:
    """Name and value rows of a table."""
    return "\n".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )


def shown(value: float | None) -> str:
    """A number as the report writes it; nothing for none."""
    if value is None:
        return ""
    return (
        f"{value:,.0f}"
        if value == int(value) and abs(value) >= 10
        else f"{value:.2f}"
        if abs(value) >= 10
        else f"{value:.3f}"
    )


PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<h1>$title</h1>
<p>$verdict</p>
<div class="scroll"><table>
<thead><tr><th>Measure</th><th>Value</th><th>Floor</th><th></th><th>Ground truth</th><th>Ceiling</th><th>Chance</th>
<th>Doing nothing</th></tr></thead>
<tbody>
$headlines
</tbody>
</table></div>
<p><small>$note</small></p>
$tasks
<section><h2>Training</h2>
$runs
</section>
<section><h2>Model, data and settings</h2>
<div class="scroll"><table class="facts"><tbody>
$facts
</tbody></table></div>
<details><summary>All measures</summary><table class="facts"><tbody>
$metrics
</tbody></table></details>
</section>
<section><h2>Make this report again</h2>
<pre>$command</pre>
</section>
</body>
</html>
""")
