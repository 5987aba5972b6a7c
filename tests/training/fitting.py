"""A fit that a test asks for, as a value: kept, changed in one respect, run."""

from dataclasses import dataclass, fields
from pathlib import Path

from reluguard.detector.artifact import GuardArtifact
from reluguard.training.data.preprocessing import Preprocessing
from reluguard.training.fit import fit
from reluguard.training.harvest.workspace import work_folder
from reluguard.training.progress import Progress
from reluguard.training.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Order:
    """What `fit` is asked for, by its own names."""

    model: Path
    data: str
    out: Path
    recipe: str | Recipe = "default"
    twin: str = "auto"
    second: str = "none"
    preprocessing: Preprocessing | None = None
    target_fpr: float = 0.05
    per_class: bool = False
    prevalence: float = 0.5
    seed: int = 0
    threads: int | None = 1
    workers: int | None = 1
    max_overhead: float | None = None
    work: Path | None = None

    @property
    def shards(self) -> Path:
        """Where the harvest lies."""
        return self.work or work_folder(self.out)

    def run(self, progress: Progress | None = None) -> GuardArtifact:
        """Fit, and return the guard as it lies on disk."""
        asked = {field.name: getattr(self, field.name) for field in fields(self)}
        return fit(asked.pop("model"), asked.pop("data"), **asked, progress=progress).artifact
