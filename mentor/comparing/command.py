"""The command: compares, shows and writes."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mentor.comparing.budget import unfairness
from mentor.comparing.comparison import Comparison, Options, compare, count_budgets, make_plan, work_of
from mentor.comparing.files import PAGE, write_comparison
from mentor.comparing.tables import budget_table, headline_table, markdown


def run(options: Options, command: str) -> Comparison:
    """Compare, write the files and print the tables; what was found.

    Raises:
        UserError: what is given cannot be compared; nothing has been written then.
    """
    console = Console()
    plan = make_plan(options)
    budgets = count_budgets(plan)
    console.print(budget_table(budgets))
    for warning in unfairness(budgets):
        console.print(warning, style="yellow", highlight=False, markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("measuring", total=work_of(plan, options))
        comparison = compare(
            plan, budgets, options, command, lambda done: progress.update(bar, advance=1, description=done)
        )
    write_comparison(comparison, options.output)
    console.print(headline_table(comparison))
    print()
    print(markdown(comparison))
    console.print(f"comparison: {options.output / PAGE}", highlight=False, soft_wrap=True, markup=False)
    return comparison
