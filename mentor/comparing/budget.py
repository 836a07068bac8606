"""What each run cost, side by side, and a plain word where that is not the same."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mentor.comparing.runs import Stage, Trained

TOTAL = "generator: total"
# A difference above this share of the least is told.
LIMITS = {"parameters": 0.05, "seconds of compute": 0.1, "samples seen": 0.1}


@dataclass(frozen=True)
class Budget:
    """What a run cost over all its trainings.

    Attributes:
        name: the run's.
        parameters: by part, the whole generator's as `generator: total`.
        seconds: of compute: wall seconds times processes.
        updates: of the weights.
        samples: that were seen.
        facts: what else is compared, as text.
        unknown: release that it began with whose cost is not known.
    """

    name: str
    parameters: Mapping[str, int]
    seconds: float
    updates: int
    samples: int
    facts: Mapping[str, str]
    unknown: str | None = None

    @property
    def amounts(self) -> dict[str, float]:
        """What can be put in proportion."""
        return {
            "parameters": self.parameters[TOTAL],
            "seconds of compute": self.seconds,
            "updates": self.updates,
            "samples seen": self.samples,
        }


def make_budget(run: Trained, parameters: Mapping[str, int]) -> Budget:
    """The sum over all trainings of a run; that of the image tokenizer is not in it."""
    facts = {
        "kind": run.kind,
        "precision": several(stage.settings["trainer"]["precision"] for stage in run.stages),
        "devices": several(describe_devices(stage) for stage in run.stages),
        "picture size": f"{run.image_size} px",
        "image tokenizer": run.tokenizer_fingerprint,
        "trainings": "; ".join(describe_stage(stage) for stage in run.stages),
    }
    if run.image_tokenizer is not None:
        facts["image tokenizer's training, not counted"] = describe_stage(run.image_tokenizer)
    return Budget(
        run.name,
        dict(parameters),
        sum(stage.seconds for stage in run.stages),
        sum(stage.updates for stage in run.stages),
        sum(stage.samples for stage in run.stages),
        facts,
        run.before,
    )


def describe_stage(stage: Stage) -> str:
    """A training in a few words: stage, seconds, updates, samples, folder."""
    return (
        f"stage {stage.settings.get('stage', '?')}: {stage.seconds:,.0f} s, {stage.updates:,} updates, "
        f"{stage.samples:,} samples, {stage.folder}"
    )


def describe_devices(stage: Stage) -> str:
    """On what a training ran, such as `2 x cpu`."""
    return f"{stage.processes} x {stage.settings['trainer']['accelerator']}"


def several(values: Iterable[object]) -> str:
    """The values that differ, in order, with commas."""
    return ", ".join(dict.fromkeys(str(value) for value in values))


def ratios(budgets: Sequence[Budget]) -> dict[str, list[float | None]]:
    """Of every amount the share of each run in the first one's; None where that is nothing."""
    first = budgets[0].amounts
    return {name: [budget.amounts[name] / first[name] if first[name] else None for budget in budgets] for name in first}


def unfairness(budgets: Sequence[Budget]) -> list[str]:
    """Sentences on what the runs do not have in common and should; none where the comparison is fair."""
    sentences = []
    for name, limit in LIMITS.items():
        amounts = {budget.name: budget.amounts[name] for budget in budgets}
        least, most = min(amounts.values()), max(amounts.values())
        if most > least * (1 + limit):
            told = ", ".join(f"{run} {amount:,.0f}" for run, amount in amounts.items())
            by = f"{100 * (most / least - 1):.0f} %" if least else "all of it"
            sentences.append(f"The runs differ in {name} by {by}, more than {100 * limit:.0f} %: {told}.")
    tokenizers = {budget.name: budget.facts["image tokenizer"] for budget in budgets}
    if len(set(tokenizers.values())) > 1:
        told = ", ".join(f"{run} {fingerprint}" for run, fingerprint in tokenizers.items())
        sentences.append(f"The runs use different image tokenizers, which the measures compare too: {told}.")
    sentences += [
        f"{budget.name} began with {budget.unknown}, whose run folder is not there: what that cost is not counted."
        for budget in budgets
        if budget.unknown
    ]
    return sentences
