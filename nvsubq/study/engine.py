"""Which run comes next: learning rates first, then the first seed of every cell, then the other seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nvsubq.study.plan import by_seed
from nvsubq.study.rates import Choice, choose
from nvsubq.study.runs import Folder, Planned, Run


@dataclass
class Engine:
    """Walks through the runs of a study, by what lies in its folder.

    Args:
        planned: the runs.
        folder: of the study.
    """

    planned: Planned
    folder: Folder

    def next_run(self, working: set[str]) -> Run | None:
        """The next run that is neither done nor failed nor under way; None where there is none yet.

        Args:
            working: names of the runs under way.
        """
        for run in self.known():
            if run.name not in working and self.folder.state(run) in ("new", "begun"):
                return run
        return None

    def known(self) -> Iterator[Run]:
        """All runs that are known by now, each once: those after a choice are when it is made."""
        seen = set()
        for run in (*self._choosing(), *self._chosen()):
            if run.name not in seen:
                seen.add(run.name)
                yield run

    def _choosing(self) -> Iterator[Run]:
        by_core = [self.planned.choosing(core) for core in self.planned.cores]
        for same_rate in zip(*by_core, strict=True):
            yield from same_rate

    def _chosen(self) -> Iterator[Run]:
        rates = {core: choice.rate for core, choice in self.choices().items()}
        for cell, seed in by_seed(self.planned.study.cells()):
            rate = rates[cell.core]
            if rate is not None:
                yield self.planned.run(cell, seed, rate)

    def choices(self) -> dict[str, Choice]:
        """What is known of each core's learning rate."""
        return {core: choose(self.planned, self.folder, core) for core in self.planned.cores}

    def left(self) -> int:
        """Runs that are neither done nor failed, those of cores without a rate included."""
        known = [run for run in self.known() if self.folder.state(run) in ("new", "begun")]
        choices = self.choices()
        cells = self.planned.study.cells()
        unknown = sum(
            len(seeds)
            for cell, seeds in cells.items()
            if choices[cell.core].rate is None and len(choices[cell.core].scores) < len(self._rates())
        )
        # One of the runs that choose is one of those that are counted as unknown.
        on, seed = self.planned.study.choice_cell, self.planned.study.choose_on["seed"]
        shared = sum(
            1
            for core, choice in choices.items()
            if choice.rate is None
            and len(choice.scores) < len(self._rates())
            and seed in cells.get(on(core), ())
        )
        return len(known) + unknown - shared

    def _rates(self) -> tuple[float, ...]:
        return self.planned.study.rates if len(self.planned.study.rates) > 1 else ()
