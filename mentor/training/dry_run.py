"""`--dry-run`: what a training run would be, in words and tables."""

import sys

import torch
from rich.console import Console
from rich.table import Table

from mentor.training.callbacks import clock
from mentor.training.config import TrainConfig
from mentor.training.memory import size_of
from mentor.training.planning import Plan, make_plan, open_folder
from mentor.training.run import title
from mentor.training.trainer import quieten, validation_interval

# What an accelerator is taken to sustain where the time of a step cannot be measured; said wherever it is used.
ASSUMED = 100e12


def dry_run(config: TrainConfig, world_size: int | None) -> None:
    """Do everything but train, and print what a run would be. Nothing is written, caches of remote data aside.

    Args:
        config: the settings.
        world_size: processes of the machines it is meant for; None: this machine, with the settings' processes.

    Raises:
        UserError: what a run would refuse.
    """
    quieten()
    folder = open_folder(config)
    if folder.finished:
        print(f"{title(config)}: finished already, the model is in {folder.release} (resume=false trains anew)")
        return
    plan = make_plan(config, folder, world_size)
    # Lines are not broken where they go into a file. Names of folders may look like markup.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)
    with console.capture() as printed:
        print_plan(plan, console)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))


def print_plan(plan: Plan, console: Console) -> None:
    """Print all of it."""
    processes = f"{plan.world} process{'es' if plan.world > 1 else ''}"
    shared = f" ({plan.config.trainer.strategy})" if plan.world > 1 else ""
    console.print(f"{title(plan.config)} on {processes}{shared}: a run could start; nothing was written", style="bold")
    facts = Table.grid(padding=(0, 2))
    for name, text in _facts(plan):
        facts.add_row(name, text)
    for table in (facts, _tasks(plan), _parts(plan), _memory(plan)):
        console.print()
        console.print(table)
    for line in _remarks(plan):
        console.print(line)


def _facts(plan: Plan) -> list[tuple[str, str]]:
    config, own, data = plan.config, plan.config.trainer, plan.config.data
    examples = own.max_steps * own.accumulate * data.batch_size
    learnt = f"{examples:,} examples, {examples * plan.blueprint.spec.tokens:,} "
    counted = "products, convolutions and attention, forward and backward"
    if plan.load.prefix:
        learnt += f"target tokens, {examples * plan.load.prefix:,} prefix tokens at most"
        counted += f", prefixes of {plan.load.prefix} tokens, the most"
    else:
        learnt += f"codes ({plan.blueprint.spec.tokens:,} a picture)"
    split = f" in {own.accumulate} batches" if own.accumulate > 1 else ""
    going = f"goes on from step {plan.folder.step}" if plan.folder.step else "new"
    if not config.resume and plan.folder.path.is_dir():
        going = "the earlier run would be put aside"
    room = f"grows to {_size(plan.needed_disk)}, {_size(plan.disk)} free"
    making = f"{plan.batch_seconds:.3g} s, {'in loader processes' if data.workers else 'before each step'}"
    return [
        ("run folder", f"{plan.folder.path}, {going}; {room}"),
        ("steps", f"{own.max_steps:,} of {data.batch_size * own.accumulate} examples{split}: {learnt}"),
        ("", f"{_often(plan)}; {_saved(plan)}"),
        ("data", f"{plan.data}; a process makes its {plan.load.rows} examples of a batch in {making}"),
        ("work", f"{_operations(plan)} a step and process: {counted}"),
        ("time", _time(plan)),
    ]


def _often(plan: Plan) -> str:
    own = plan.config.trainer
    if not own.validate_every:
        return "no validation"
    return f"validation {-(-own.max_steps // validation_interval(own)):,} time(s)"


def _saved(plan: Plan) -> str:
    own = plan.config.trainer
    every = f"every {own.checkpoint_every:,} steps, " if own.checkpoint_every else ""
    kept = f", and each of {own.keep_every:,} steps" if own.keep_every else ""
    return (
        f"checkpoints of {_size(plan.checkpoint)} {every}every {own.checkpoint_minutes:g} min at most, and at the end; "
        f"the last {own.keep} are kept{kept}"
    )


def _time(plan: Plan) -> str:
    if plan.update_seconds is not None and plan.step_seconds is not None:
        hours = clock(plan.update_seconds * plan.steps_left)
        return f"{plan.step_seconds:.3g} s a step, measured here; {hours} in all, with making batches"
    told = f"not measured: {plan.unmeasured}"
    if plan.config.trainer.accelerator == "cpu":
        return told
    seconds = plan.demand.flops * plan.config.trainer.accumulate / ASSUMED
    return (
        f"{told}. If each process sustained {ASSUMED / 1e12:g} TFLOP/s: {seconds:.3g} s a step, "
        f"{clock(seconds * plan.steps_left)} in all"
    )


def _operations(plan: Plan) -> str:
    count = float(plan.demand.flops * plan.config.trainer.accumulate)
    letters = iter("kMGTPE")
    letter = ""
    while count >= 1000:
        count, letter = count / 1000, next(letters)
    return f"{count:.3g} {letter}FLOP"


def _tasks(plan: Plan) -> Table:
    table = _table("task", "batches", "examples", "records", "epochs")
    for task in plan.tasks:
        known = ("?", "?") if task.usable is None else (f"{task.usable:,}", f"{task.examples / task.usable:,.2f}")
        table.add_row(task.name, f"{task.batches:,}", f"{task.examples:,}", *known)
    return table


def _parts(plan: Plan) -> Table:
    table = _table("part", "parameters", "trained", "size")
    rows = [(name, _parameters(part)) for name, part in plan.blueprint.parts.items()]
    rows = [(name, parameters) for name, parameters in rows if parameters]
    rows.append(("total", [parameter for _, parameters in rows for parameter in parameters]))
    if plan.blueprint.generator is not None:
        rows.append(("image tokenizer", list(plan.blueprint.image_tokenizer.parameters())))
    for name, parameters in rows:
        trained = sum(one.numel() for one in parameters if one.requires_grad)
        count = sum(one.numel() for one in parameters)
        table.add_row(name, f"{count:,}", f"{trained:,}" if trained else "frozen", _size(size_of(parameters)))
    return table


def _parameters(part: torch.nn.Module | torch.nn.Parameter) -> list[torch.nn.Parameter]:
    return [part] if isinstance(part, torch.nn.Parameter) else list(part.parameters())


def _memory(plan: Plan) -> Table:
    states, demand = plan.states, plan.demand
    table = _table("memory of a process", "size", "")
    kinds = plan.config.optimizer.kind
    rows = [
        ("weights and buffers", states.weights, ""),
        ("gradients", states.gradients, ""),
        ("optimizer state", states.optimizer, kinds),
        ("running average", states.average, ""),
        ("image tokenizer", states.image_tokenizer, "frozen"),
        ("gradient buckets", states.buckets, "of distributed training"),
    ]
    for name, size, remark in rows:
        if size:
            table.add_row(name, _size(size), remark)
    table.add_row("a step, at most", _size(demand.step), f"estimate{_logits(plan)}")
    if demand.encoding:
        table.add_row("making codes, before it", _size(demand.encoding), "estimate")
    if demand.validation:
        table.add_row("validation, at most", _size(demand.validation), "estimate")
    if demand.gathered:
        table.add_row("gathered for a while", _size(demand.gathered), "estimate; of sharded training")
    free = f"; {_size(plan.memory)} are free here" if plan.memory else ""
    table.add_row("together", _size(states.total + demand.most), f"the largest of the estimates counts{free}")
    return table


def _logits(plan: Plan) -> str:
    generator = plan.blueprint.generator
    if generator is None or generator.draws != "codes":
        return ""
    spec = plan.blueprint.spec
    size = plan.load.rows * spec.tokens * spec.vocab_size * 4
    return f"; logits are {plan.load.rows} x {spec.tokens:,} x {spec.vocab_size:,}, {_size(size)} each time"


def _remarks(plan: Plan) -> list[str]:
    """What a run would start with all the same, and perhaps not end well."""
    remarks = []
    limit = plan.config.guard.max_epochs
    for task in plan.tasks:
        if limit is not None and task.usable and task.examples > limit * task.usable:
            remarks.append(f"guard.max_epochs={limit:g} will stop the run: {task.name} comes to more epochs.")
    together = plan.states.total + plan.demand.most
    if plan.memory and together > plan.memory:
        remarks.append(f"This may be too much memory: {_size(together)} of {_size(plan.memory)}.")
    if plan.needed_disk > plan.disk:
        remarks.append(f"This may be too much for the disk: {_size(plan.needed_disk)} of {_size(plan.disk)}.")
    return remarks


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold", title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 or not name else "right")
    return table


def _size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
