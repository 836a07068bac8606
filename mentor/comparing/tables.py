"""Budget and leading measures as tables, for the console and as Markdown."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Column, Table

from mentor.comparing.budget import TOTAL, Budget, ratios
from mentor.comparing.comparison import Comparison
from mentor.comparing.scores import Score
from mentor.evaluation.headlines import HEADLINES, Headline
from mentor.evaluation.report import shown

Cells = tuple[str, list[str]]
LEGEND = (
    "In brackets: 95 % intervals (bootstrap over the examples). ▲ ▼: clearly above or below the first run "
    "(the paired interval of the difference does not hold 0)."
)


def budget_rows(budgets: Sequence[Budget]) -> list[Cells]:
    """A row of cells for each amount and fact, one cell a run."""
    shares = ratios(budgets)
    rows: list[Cells] = []
    for name in budgets[0].amounts:
        rows.append((name, [f"{budget.amounts[name]:,.0f}" for budget in budgets]))
    parts = dict.fromkeys(part for budget in budgets for part, count in budget.parameters.items() if count)
    for part in (part for part in parts if part != TOTAL):
        cells = [f"{budget.parameters[part]:,}" if part in budget.parameters else "" for budget in budgets]
        rows.append((f"parameters, {part}", cells))
    for fact in dict.fromkeys(fact for budget in budgets for fact in budget.facts):
        rows.append((fact, [budget.facts.get(fact, "") for budget in budgets]))
    for name, values in shares.items():
        rows.append((f"{name}, to the first", ["" if value is None else f"{value:.3f}" for value in values]))
    return rows


def measured_headlines(comparison: Comparison) -> list[Headline]:
    """The leading measures that there are."""
    return [headline for headline in HEADLINES if headline.key in comparison.scores]


def written(score: Score) -> str:
    """A value with its interval and, where it clearly differs from the first run's, a mark."""
    if score.value is None:
        return ""
    text = shown(score.value)
    if score.interval is not None:
        text += f" [{shown(score.interval[0])}, {shown(score.interval[1])}]"
    return text + mark(score)


def mark(score: Score) -> str:
    """An arrow for a clear difference to the first run."""
    if not score.clear or score.difference is None:
        return ""
    return " ▲" if score.difference > 0 else " ▼"


def mean_seconds(seconds: dict[str, float]) -> str:
    """Seconds a picture, the mean over the tasks."""
    return f"{sum(seconds.values()) / len(seconds):.3g}" if seconds else ""


def cost_rows(comparison: Comparison) -> list[Cells]:
    """What quality cost: parameters, compute, samples, and seconds of drawing."""
    wanted = ("parameters", "seconds of compute", "samples seen")
    rows = [(name, [f"{budget.amounts[name]:,.0f}" for budget in comparison.budgets]) for name in wanted]
    return [*rows, ("seconds a picture (mean over tasks)", [mean_seconds(seconds) for seconds in comparison.seconds])]


def budget_table(budgets: Sequence[Budget]) -> Table:
    """The budget for the console."""
    table = Table(Column("budget", no_wrap=True), *(Column(escape(budget.name)) for budget in budgets), box=None)
    for name, cells in budget_rows(budgets):
        table.add_row(name, *map(escape, cells))
    return table


def headline_table(comparison: Comparison) -> Table:
    """The leading measures for the console."""
    names = (Column(escape(name)) for name in comparison.names)
    table = Table(Column("measure", no_wrap=True), *names, "floor", "ceiling", "chance", "nothing", box=None)
    for headline in measured_headlines(comparison):
        cells = [escape(written(score)) for score in comparison.scores[headline.key]]
        beside = [headline.beside(comparison.beside, suffix) for suffix in ("ceiling", "chance", "nothing")]
        table.add_row(headline.key, *cells, shown(headline.least(comparison.beside)), *map(shown, beside))
    for name, cells in cost_rows(comparison)[-1:]:
        table.add_row(name, *cells)
    return table


def markdown(comparison: Comparison) -> str:
    """The table that fits into a README."""
    lines = [line(["measure", *comparison.names]), line(["---"] * (1 + len(comparison.names)))]
    for headline in measured_headlines(comparison):
        unit = "" if headline.unit == "share" else f" ({headline.unit})"
        scores = comparison.scores[headline.key]
        lines.append(line([f"{headline.title}{unit}", *map(written, scores)]))
    lines += [line([name, *cells]) for name, cells in cost_rows(comparison)]
    facts = comparison.facts
    seeds = facts["seeds"]
    return "\n".join(
        [
            *lines,
            "",
            LEGEND,
            f"{facts['examples of each task and seed']} held-out examples of each task for each of {len(seeds)} "
            f"seed{'s' if len(seeds) > 1 else ''}; {facts['device']}; {facts['date'][:10]}.",
            *(f"\n**{warning}**" for warning in comparison.warnings),
            "",
            "```",
            facts["command"],
            "```",
            "",
        ]
    )


def line(cells: Sequence[str]) -> str:
    """A row of Markdown."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
