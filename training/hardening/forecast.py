"""How long hardening will take: a few steps of an attack are timed, the rest counted in them."""

from torch import nn

from reluguard.detector.images import InputSpec
from reluguard.training.attacks import PGD, Victim
from reluguard.training.data.dataset import Dataset
from reluguard.training.expected.speed import busy_seconds
from reluguard.training.hardening.settings import HardenSettings
from reluguard.training.progress import Planned
from reluguard.training.twin.twin import Twin

__all__ = ["expected_steps", "steps_of"]

IMAGES = 32
STEPS = 3
# in steps of PGD on an image: what the teacher says, one step of FGSM, and both images learned from
LEARNED = 4.0
LOOKED = 6.0  # likewise: an image judged but for the attack on it


def steps_of(settings: HardenSettings, train: int, test: int) -> tuple[float, float]:
    """Return what training and judging take, in steps of an attack on an image.

    Args:
        settings: of the training.
        train: images.
        test: images, looked at before and after.
    """
    learned = LEARNED * settings.epochs * train
    return learned, 2 * test * (settings.steps + LOOKED)


def expected_steps(
    module: nn.Module,
    spec: InputSpec,
    train: Dataset,
    test: Dataset,
    settings: HardenSettings,
) -> list[Planned]:
    """Return what is to come, and how long each takes on free cores.

    Args:
        module: the model in torch; returns its class scores.
        spec: how images go into it.
        train: to train on.
        test: to judge by, before and after.
        settings: of the training.
    """
    images, labels = train.images[:IMAGES], train.labels[:IMAGES]
    twin = Twin(module, spec, device="cpu")
    victim = Victim(predict=twin.predict, twin=twin)
    attack = PGD(size=settings.budget, steps=STEPS)
    attack(images, labels, victim, seed=0)  # warms up
    taken = busy_seconds(lambda: attack(images, labels, victim, seed=0))
    step = taken / len(images) / STEPS
    learned, judged = steps_of(settings, len(train), len(test))
    return [Planned("harden", step * learned), Planned("robust accuracy", step * judged)]
