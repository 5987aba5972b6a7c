"""What a fit has harvested: all that its heads are fitted and judged on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reluguard.detector.images import Images
from reluguard.detector.looks.joint import Joint
from reluguard.training.data.case import Case
from reluguard.training.harvest.orders import Job, Orders
from reluguard.training.harvest.readings import Readings
from reluguard.training.harvest.workspace import Workspace
from reluguard.training.head.second import joint_readings
from reluguard.training.recipes import Recipe

__all__ = ["Harvested"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Harvested:
    """Shards on disk, and what they were made of.

    Attributes:
        case: the model and its images, with the taps that are read.
        recipe: what was attacked with.
        orders: of the harvest, which read all taps.
        workspace: the folder of shards, which gives the rates of the taps that are read.
        jobs: the shards by slug, clean first, composed ones too.
    """

    case: Case
    recipe: Recipe
    orders: Orders
    workspace: Workspace
    jobs: Mapping[str, Sequence[Job]]

    def split(self, name: str) -> dict[str, list[Job]]:
        """Return the shards of one split, "fit" or "test", by slug."""
        return {
            slug: [job for job in made if job.split == name] for slug, made in self.jobs.items()
        }

    def groups(self) -> list[Readings]:
        """Return what was read of the fitting sources, weighted as the recipe says."""
        return [
            replace(self.workspace.readings(jobs), weight=self.recipe.weights.get(slug, 1.0))
            for slug, jobs in self.split("fit").items()
        ]

    def joint_groups(self, joint: Joint, *, is_other: bool) -> list[Readings]:
        """Return what both looks read of them, likewise.

        Args:
            joint: the taps of both.
            is_other: whether another network looks again, which reads taps of its own.
        """
        columns = None if is_other else self.workspace.columns
        return [
            replace(
                joint_readings(self.workspace, jobs, joint, columns),
                weight=self.recipe.weights.get(slug, 1.0),
            )
            for slug, jobs in self.split("fit").items()
        ]

    def examples(self, most: int) -> Images:
        """Return a few images, uint8 (G, H, W, C): half calibration images, half attacked ones.

        Args:
            most: G at most.
        """
        images = [self.case.dataset.images[self.case.splits["calibrate"][: -(-most // 2)]]]
        attacked = next(made for made in self.jobs.values() if made[0].kind == "attack")
        shard = self.workspace.read(attacked[0])
        if shard.images is not None:
            images.append(shard.images[shard.success][: most // 2])
        elif shard.sample is not None:
            images.append(shard.sample[: most // 2])
        return np.concatenate(images)
