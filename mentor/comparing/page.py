"""The page of a comparison: one HTML file with everything in it."""

from collections.abc import Mapping, Sequence
from html import escape
from string import Template

from mentor.comparing.charts import Line, Point, course_svg, pareto_svg
from mentor.comparing.comparison import Comparison, CoursePoint, SweepPoint, best_points
from mentor.comparing.measuring import MEASURES
from mentor.comparing.pictures import Row
from mentor.comparing.scores import Score
from mentor.comparing.tables import LEGEND, budget_rows, mark, measured_headlines
from mentor.config import flatten
from mentor.evaluation.headlines import Headline
from mentor.evaluation.report import TASK_TITLES, render_facts, render_picture, shown
from mentor.evaluation.style import STYLE

BESIDE = ("ceiling", "chance", "nothing")


def render_page(comparison: Comparison) -> str:
    """The HTML; all text that comes from outside is escaped."""
    return PAGE.substitute(
        style=STYLE,
        title=escape("mentor: " + " / ".join(comparison.names)),
        warnings=render_warnings(comparison.warnings),
        heads=cells("th", comparison.names),
        budget=render_rows(budget_rows(comparison.budgets)),
        headlines="\n".join(render_headline(headline, comparison) for headline in measured_headlines(comparison)),
        seconds=render_seconds(comparison.seconds),
        note=escape(f"{LEGEND} A value is the mean over the examples of all seeds; CP x PF is the product of two."),
        measures="\n".join(render_measure(key, scores) for key, scores in comparison.scores.items()),
        course=render_course(comparison),
        pareto=render_pareto(comparison),
        pictures=render_pictures(comparison.rows, comparison.names),
        facts=render_facts({name: value for name, value in comparison.facts.items() if name != "command"}),
        settings=render_settings(comparison),
        command=escape(str(comparison.facts["command"])),
    )


def render_warnings(warnings: Sequence[str]) -> str:
    """What is not fair, or a word that nothing is known."""
    if not warnings:
        return "<p>Parameters, seconds of compute and samples are the same for all runs, or nearly so.</p>"
    return "\n".join(f'<p class="warning">{escape(warning)}</p>' for warning in warnings)


def cells(tag: str, texts: Sequence[str]) -> str:
    """The texts as cells of a row."""
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)


def render_rows(rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Rows with a name and a cell for each run."""
    return "\n".join(f'<tr><th scope="row">{escape(name)}</th>{cells("td", texts)}</tr>' for name, texts in rows)


def render_headline(headline: Headline, comparison: Comparison) -> str:
    """A leading measure: every run's value and interval, then floor, ceiling, chance and doing nothing."""
    unit = "" if headline.unit == "share" else f" {headline.unit}"
    runs = "".join(f"<td>{render_score(score, unit)}</td>" for score in comparison.scores[headline.key])
    beside = [headline.least(comparison.beside), *(headline.beside(comparison.beside, suffix) for suffix in BESIDE)]
    return (
        f'<tr><th scope="row">{escape(headline.title)}<small>{escape(headline.meaning)}</small></th>{runs}'
        f"{cells('td', [shown(value) for value in beside])}</tr>"
    )


def render_score(score: Score, unit: str = "") -> str:
    """A value, its interval and the mark of a clear difference."""
    if score.value is None:
        return ""
    between = ""
    if score.interval is not None:
        between = f" <small>[{shown(score.interval[0])}, {shown(score.interval[1])}]</small>"
    kind = "pass" if (score.difference or 0) > 0 else "fail"
    sign = f' <span class="{kind}">{mark(score).strip()}</span>' if mark(score) else ""
    return f"<b>{shown(score.value)}{escape(unit)}</b>{between}{sign}"


def render_measure(key: str, scores: Sequence[Score]) -> str:
    """A row of the details: value, interval, the difference to the first run, and the value of each seed."""
    columns = []
    for score in scores:
        lines = [render_score(score)]
        if score.difference_interval is not None and score is not scores[0]:
            low, high = score.difference_interval
            lines.append(f"<small>difference {score.difference:+.3f} [{low:+.3f}, {high:+.3f}]</small>")
        lines.append(f"<small>seeds: {', '.join(map(shown, score.seeds))}</small>")
        columns.append(f"<td>{'<br>'.join(lines)}</td>")
    return f'<tr><th scope="row">{escape(key)}</th>{"".join(columns)}</tr>'


def render_seconds(seconds: Sequence[Mapping[str, float]]) -> str:
    """Seconds a picture of each task takes."""
    tasks = dict.fromkeys(task for one in seconds for task in one)
    rows = [
        (f"Seconds a picture, {TASK_TITLES.get(task, task).lower()}", [f"{one[task]:.3g}" for one in seconds])
        for task in tasks
    ]
    return render_rows(rows)


def lines_of(names: Sequence[str], points: Sequence[Sequence[CoursePoint | SweepPoint]], key: str) -> list[Line]:
    """Each run's line of a chart: seconds to the right, a measure upwards; points without the measure are left out."""
    return [
        Line(name, [Point(point.seconds, point.metrics[key], point.label) for point in own if key in point.metrics])
        for name, own in zip(names, points, strict=True)
    ]


def render_course(comparison: Comparison) -> str:
    """Quality over training time, a chart a measure."""
    if not any(comparison.courses):
        return "<p>Left out (--curve-counts 0).</p>"
    charts = []
    for key, title in MEASURES.items():
        lines = lines_of(comparison.names, comparison.courses, key)
        charts.append((title, course_svg(lines, f"{title} over seconds of compute")))
    alone = [
        name
        for name, points in zip(comparison.names, comparison.courses, strict=True)
        if not any("release" not in point.label for point in points)
    ]
    notes = [
        f"<p>No checkpoints of {escape(name)} are kept, so there are only the releases of its trainings "
        f"(trainer.keep_every keeps some).</p>"
        for name in alone
    ]
    return render_charts(charts) + "".join(notes)


def render_pareto(comparison: Comparison) -> str:
    """Quality over sampling time, a chart a measure, and all ways of drawing in a table."""
    if not any(comparison.sweeps):
        return "<p>Left out (--curve-counts 0).</p>"
    charts = []
    for key, title in MEASURES.items():
        lines = lines_of(comparison.names, comparison.sweeps, key)
        charts.append((title, pareto_svg(lines, f"{title} over seconds a picture")))
    best = {key: best_points(comparison, key) for key in MEASURES}
    rows = []
    for number, (name, points) in enumerate(zip(comparison.names, comparison.sweeps, strict=True)):
        for index, point in enumerate(points):
            told = f"<td>{escape(point.label)}</td>"
            if point.refused:
                told += f'<td colspan="{1 + len(MEASURES)}">not tried: {escape(point.refused)}</td>'
            else:
                told += f"<td>{point.seconds:.3g}</td>"
                for key in MEASURES:
                    star = ' <span class="pass">best</span>' if (number, index) in best[key] else ""
                    told += f"<td>{shown(point.metrics.get(key))}{star}</td>"
            rows.append(f'<tr><th scope="row">{escape(name)}</th>{told}</tr>')
    heads = cells("th", ["Run", "Sampling", "Seconds a picture", *MEASURES.values()])
    return (
        f'{render_charts(charts)}<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def render_charts(charts: Sequence[tuple[str, str]]) -> str:
    """Charts under their titles, side by side where there is room."""
    drawn = [f"<div><h3>{escape(title)}</h3>{chart}</div>" for title, chart in charts if chart]
    return f'<div class="charts">{"".join(drawn)}</div>'


def render_pictures(rows: Sequence[Row], names: Sequence[str]) -> str:
    """A row a prompt: reference, target, and what each run drew."""
    parts = []
    for task in dict.fromkeys(row.task for row in rows):
        parts.append(f"<h3>{escape(TASK_TITLES.get(task, task))}</h3>")
        for row in (row for row in rows if row.task == task):
            named = zip(("reference", "target", *names), row.pictures, strict=True)
            figures = "".join(render_picture(name, pixels) for name, pixels in named if pixels is not None)
            parts.append(
                f'<article><p class="prompt">{escape(row.prompt)}</p><div class="row">{figures}</div></article>'
            )
    return "\n".join(parts) or "<p>None were asked for.</p>"


def render_settings(comparison: Comparison) -> str:
    """How each run was evaluated: a row for every setting, those that differ first."""
    flat = [flatten(settings) for settings in comparison.settings]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, [str(one.get(key, "")) for one in flat]) for key in keys]
    return render_rows(sorted(rows, key=lambda row: len(set(row[1])) == 1))


PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style.warning { color: #8a5a00; font-weight: 600; }
article { margin: .5rem 0; }
</style>
</head>
<body>
<h1>$title</h1>
$warnings
<section><h2>Budget</h2>
<div class="scroll"><table class="facts"><thead><tr><th></th>$heads</tr></thead>
<tbody>
$budget
</tbody></table></div>
<p><small>Seconds of compute: wall seconds times processes, summed over all trainings of a run. The training of the
image tokenizer, which the runs have in common, is not counted.</small></p>
</section>
<section><h2>Measures</h2>
<div class="scroll"><table>
<thead><tr><th>Measure</th>$heads<th>Floor</th><th>Ceiling</th><th>Chance</th><th>Doing nothing</th></tr></thead>
<tbody>
$headlines
$seconds
</tbody></table></div>
<p><small>$note</small></p>
<details><summary>All measures, differences and seeds</summary><div class="scroll"><table>
<thead><tr><th>Measure</th>$heads</tr></thead>
<tbody>
$measures
</tbody></table></div></details>
</section>
<section><h2>Quality over training time</h2>
<p>To the right: seconds of compute. Each point is a kept checkpoint's averaged weights, or a release.</p>
$course
</section>
<section><h2>Quality over sampling time</h2>
<p>To the right: seconds a picture, on a logarithmic axis, at the same number of pictures at once for all. Ringed and
joined by the dotted line: what no other way of drawing beats in both.</p>
$pareto
</section>
<section><h2>Pictures</h2>
<p>The same prompts and seeds for all runs, as they come.</p>
$pictures
</section>
<section><h2>Data and settings</h2>
<div class="scroll"><table class="facts"><tbody>
$facts
</tbody></table></div>
<details><summary>Settings of the evaluations</summary><div class="scroll"><table class="facts">
<thead><tr><th></th>$heads</tr></thead><tbody>
$settings
</tbody></table></div></details>
</section>
<section><h2>Make this page again</h2>
<pre>$command</pre>
</section>
</body>
</html>
""")
