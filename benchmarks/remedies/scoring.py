"""Count repairs and trials for each strategy, with intervals; name every failure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from benchmarks.remedies.judging import BEST_OF, MOST_TRIALS, Course
from benchmarks.remedies.strategies import GRADSCOPE
from benchmarks.verdicts.programs import PROGRAMS
from benchmarks.verdicts.scoring import interval

ROOT = Path(__file__).parents[2]
# Faults that only an edit takes away: of the loss, of an operation in forward(), of the graph, of the loop.
# These were listed before any result was seen,
LISTED_FIRST = frozenset(
    {
        "mlp-softmax-twice",
        "mlp-never-zeroed",
        "mlp-detached",
        "mlp-root-of-negative",
        "conv-softmax-as-nll",
        "conv-divided-by-zero",
        "attention-log-of-zero",
        "regression-broadcast",
        "regression-flipped-loss",
        "regression-waves-never-zeroed",
        "published-28-broadcast",
        "published-28-flipped",
        "residual-root-at-zero",
        "residual-never-zeroed",
        "language-detached",
        "language-never-zeroed",
        "autoencoder-detached",
        "autoencoder-log-of-zero",
        "siamese-root",
        "siamese-never-zeroed",
        "tabular-cancer-twice-sigmoid",
        "tabular-ratio-of-zero",
    }
)
# these after their failures had been seen.
LISTED_LATER = frozenset(
    {
        "agents-imitation-never-zeroed",
        "physics-flow-never-zeroed",
        "physics-radial",
        "density-couplings-scale-detached",
        "segmentation-rounded-code",
        "transfer-body-detached",
        "transfer-triplets-root",
        "translation-encoder-detached",
        "translation-inverted-mask",
    }
)
IN_CODE = LISTED_FIRST | LISTED_LATER
# Where none is listed by name, as in the held-out families, such causes alone put a fault in the code.
CAUSES_IN_CODE = frozenset({"gradient-not-zeroed", "missing-gradient"})
_DRAWS = 10_000


@dataclass(frozen=True)
class Treated:
    """An ailing run and what each strategy made of it."""

    program: str
    family: str
    seed: int
    courses: dict[str, Course]

    @property
    def in_code(self) -> bool:
        """Tell whether only an edit of the user's code takes the fault away."""
        return self.program in IN_CODE or CAUSES_IN_CODE.issuperset(PROGRAMS[self.program].causes)

    @property
    def in_code_from_the_first(self) -> bool:
        """Tell whether that was said of this very program before any result was seen."""
        return self.program in LISTED_FIRST


def section(title: str, runs: Sequence[Treated]) -> str:
    """Return all tables of a split as Markdown."""
    if not runs:
        return ""
    curable = [run for run in runs if not run.in_code]
    edits = [run for run in runs if run.in_code]
    later = [run for run in edits if not run.in_code_from_the_first]
    asked = sum(run.courses[GRADSCOPE].first_is_an_edit for run in edits)
    parts = [
        f"### {title.capitalize()} families",
        f"{len({run.program for run in runs})} programs, {len(runs)} ailing runs. In {len(curable)} a "
        f"remedy can reach the fault; {len(edits)} need an edit of the user's code, and for {asked} of "
        "those an edit is what gradscope prescribes first.",
        _table(curable),
        f"With the {len({run.program for run in later})} programs that were set apart later, or by their "
        "cause, counted too:",
        _table([*curable, *later]),
        _by_family(runs),
        _differences(curable),
        "Failures of gradscope where a remedy can reach the fault, a line a program: what was prescribed on "
        "the first of the seeds, with the share of the twin's improvement that each remedy reached.",
        "\n".join(_failures(curable)),
        "Faults that need an edit, and what was prescribed on the first of the seeds.",
        "\n".join(_lines(edits)),
    ]
    return "\n\n".join(parts) + "\n"


def rows(run: Treated) -> Iterator[list[object]]:
    """Yield one row a proposal."""
    for strategy, course in run.courses.items():
        for place, step in enumerate(course.steps, start=1):
            share = f"{step.trial.share:.3g}" if step.trial and step.tried else ""
            refused = step.trial.refused if step.trial else "an edit"
            refused = refused.replace(f"{ROOT}/", "")  # where surgery names the file to edit
            yield [run.family, run.program, run.seed, strategy, place, step.title, share, refused]


def _table(runs: Sequence[Treated]) -> str:
    heads = ("first remedy repairs", f"best of {BEST_OF}", f"any of {MOST_TRIALS}", "mean trials needed")
    lines = [f"| strategy (n={len(runs)}) | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for strategy in followed(runs):
        courses = [(run.program, run.courses[strategy]) for run in runs]
        cells = (
            _share([(name, course.first_repairs) for name, course in courses]),
            _share([(name, course.repairs_within(BEST_OF)) for name, course in courses]),
            _share([(name, course.repairs_within(MOST_TRIALS)) for name, course in courses]),
            f"{mean(course.trials for _, course in courses):.2f}" if courses else "–",
        )
        lines.append(f"| {strategy} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def followed(runs: Sequence[Treated]) -> list[str]:
    """Return the strategies that were followed in these runs."""
    return list(dict.fromkeys(strategy for run in runs for strategy in run.courses))


def _share(hits: Sequence[tuple[str, bool]]) -> str:
    """Return the share of hits with its interval; each comes with the name of its program."""
    if not hits:
        return "–"
    outcomes = defaultdict(list)
    for name, hit in hits:
        outcomes[name].append(hit)
    low, high = interval(list(outcomes.values()))
    return f"{mean(hit for _, hit in hits):.1%} [{low:.0%}, {high:.0%}]"


def _by_family(runs: Sequence[Treated]) -> str:
    lines = [
        "gradscope by family (runs):",
        "",
        f"| family | first remedy repairs | best of {BEST_OF} | needs an edit |",
        "|---|---|---|---|",
    ]
    for family in dict.fromkeys(run.family for run in runs):
        chosen = [run.courses[GRADSCOPE] for run in runs if run.family == family and not run.in_code]
        edits = sum(run.in_code for run in runs if run.family == family)
        first, best = sum(c.first_repairs for c in chosen), sum(c.repairs_within(BEST_OF) for c in chosen)
        lines.append(f"| {family} | {first} / {len(chosen)} | {best} / {len(chosen)} | {edits} |")
    return "\n".join(lines)


def _differences(runs: Sequence[Treated]) -> str:
    lines = ["Trials needed by gradscope less those of the other on the same run (below 0: fewer):", ""]
    for other in followed(runs):
        if other != GRADSCOPE:
            centre, low, high = paired(runs, other)
            lines.append(f"- {other}: {centre:+.2f} [{low:+.2f}, {high:+.2f}]")
    return "\n".join(lines)


def paired(runs: Sequence[Treated], other: str) -> tuple[float, float, float]:
    """Return the mean of gradscope's trials less another's, and its 95 % bootstrap over programs."""
    groups = defaultdict(list)
    for run in runs:
        groups[run.program].append(run.courses[GRADSCOPE].trials - run.courses[other].trials)
    means = np.array([mean(group) for group in groups.values()])
    drawn = np.random.default_rng(0).integers(0, len(means), (_DRAWS, len(means)))
    low, high = np.quantile(means[drawn].mean(1), [0.025, 0.975])
    return float(means.mean()), float(low), float(high)


def _failures(runs: Sequence[Treated]) -> Iterator[str]:
    courses = [(run, run.courses[GRADSCOPE]) for run in runs]
    none = [run for run, course in courses if not course.repairs_within(BEST_OF)]
    late = [run for run, course in courses if course.repairs_within(BEST_OF) and not course.first_repairs]
    yield from _lines(none, f"none of {BEST_OF}: ")
    yield from _lines(late, "not the first: ")


def _lines(runs: Sequence[Treated], what: str = "") -> Iterator[str]:
    """Yield a line a program: its seeds among these runs, and what was prescribed on the first of them."""
    groups = defaultdict(list)
    for run in runs:
        groups[run.program].append(run)
    for program, group in groups.items():
        seeds = ", ".join(str(run.seed) for run in group)
        steps = "; ".join(map(str, group[0].courses[GRADSCOPE].steps)) or "nothing prescribed"
        yield f"- {what}{program} (seed{'s' if len(group) > 1 else ''} {seeds}): {steps}"
