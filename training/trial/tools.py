"""What a picture can be put through, each with a slider for its strength.

A strength is one number whose meaning the tool says; every tool takes the one its slider begins at.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from reluguard.training.attacks import FGSM, MIFGSM, PGD, Attack, DeepFool, Patch, Spatial, Square
from reluguard.training.changes import (
    JPEG,
    Blur,
    Brightness,
    Change,
    Contrast,
    GaussianNoise,
    Resize,
    Rotate,
    Sharpen,
    SignNoise,
    WebP,
)
from reluguard.training.errors import AttackError

__all__ = ["ATTACK_TOOLS", "CHANGE_TOOLS", "AttackTool", "ChangeTool", "Slider"]

_QUERIES = 300
_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Slider:
    """From where to where a strength goes, in which steps, where it begins and what it counts."""

    low: float
    high: float
    step: float
    start: float
    unit: str

    def check(self, strength: float) -> None:
        """Raise AttackError unless the strength lies on it."""
        if not self.low <= strength <= self.high:
            raise AttackError(
                f"expected a strength of {self.low:g} to {self.high:g} {self.unit}, "
                f"got {strength:g}"
            )


_LINF = Slider(low=1, high=32, step=1, start=4, unit="of 255 steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackTool:
    """An attack with its slider; `make` takes the strength and the image's shape (H, W, C)."""

    label: str
    slider: Slider | None
    make: Callable[[float, tuple[int, int, int]], Attack]
    needs_gradients: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeTool:
    """A harmless change with its slider; `make` takes the strength."""

    label: str
    slider: Slider
    make: Callable[[float], Change]
    needs_colour: bool = False


def _l2(strength: float, shape: tuple[int, int, int]) -> Attack:
    """Return PGD in L2 whose mean square change is that of so many 8-bit steps."""
    height, width, channels = shape
    return PGD(norm="l2", size=strength * (height * width * channels) ** 0.5 / 255, steps=_STEPS)


def _patch(strength: float, shape: tuple[int, int, int]) -> Attack:
    """Return a patch of so many hundredths of the shorter side."""
    return Patch(side=max(1, round(strength * min(shape[:2]) / 100)))


ATTACK_TOOLS: Mapping[str, AttackTool] = MappingProxyType(
    {
        "fgsm": AttackTool(label="FGSM: one step", slider=_LINF, make=lambda s, _: FGSM(size=s)),
        "pgd": AttackTool(
            label="PGD: twenty steps", slider=_LINF, make=lambda s, _: PGD(size=s, steps=_STEPS)
        ),
        "pgd-early": AttackTool(
            label="PGD that stops as soon as it succeeds",
            slider=_LINF,
            make=lambda s, _: PGD(size=s, steps=_STEPS, early_stop=True),
        ),
        "mifgsm": AttackTool(
            label="MI-FGSM: steps with momentum", slider=_LINF, make=lambda s, _: MIFGSM(size=s)
        ),
        "pgd-l2": AttackTool(
            label="PGD in L2: unevenly spread",
            slider=Slider(
                low=0.25, high=16, step=0.25, start=2, unit="of 255 steps, root mean square"
            ),
            make=_l2,
        ),
        "deepfool": AttackTool(
            label="DeepFool: as little as it takes", slider=None, make=lambda _, __: DeepFool()
        ),
        "patch": AttackTool(
            label="Patch: a square of anything",
            slider=Slider(low=5, high=40, step=1, start=20, unit="% of the shorter side"),
            make=_patch,
        ),
        "square": AttackTool(
            label=f"Square: {_QUERIES} questions, no gradient",
            slider=_LINF,
            make=lambda s, _: Square(size=s, most_queries=_QUERIES),
            needs_gradients=False,
        ),
        "spatial": AttackTool(
            label="Turned and shifted, the worst of many",
            slider=Slider(low=1, high=45, step=1, start=15, unit="degrees either way"),
            make=lambda s, _: Spatial(degrees=s),
            needs_gradients=False,
        ),
    }
)

CHANGE_TOOLS: Mapping[str, ChangeTool] = MappingProxyType(
    {
        "jpeg": ChangeTool(
            label="Saved as JPEG",
            slider=Slider(low=5, high=95, step=1, start=75, unit="quality"),
            make=lambda s: JPEG(quality=round(s)),
        ),
        "webp": ChangeTool(
            label="Saved as WebP",
            slider=Slider(low=5, high=100, step=1, start=80, unit="quality"),
            make=lambda s: WebP(quality=round(s)),
        ),
        "resize": ChangeTool(
            label="Resized and back",
            slider=Slider(low=25, high=200, step=5, start=60, unit="% of the side"),
            make=lambda s: Resize(share=s / 100),
        ),
        "brightness": ChangeTool(
            label="Brightness",
            slider=Slider(low=-50, high=50, step=1, start=10, unit="% of the range"),
            make=lambda s: Brightness(amount=s / 100),
        ),
        "contrast": ChangeTool(
            label="Contrast",
            slider=Slider(low=25, high=200, step=5, start=75, unit="%"),
            make=lambda s: Contrast(factor=s / 100),
        ),
        "blur": ChangeTool(
            label="Blurred",
            slider=Slider(low=0.1, high=3, step=0.1, start=0.6, unit="pixels, deviation"),
            make=lambda s: Blur(sigma=s),
        ),
        "sharpen": ChangeTool(
            label="Sharpened",
            slider=Slider(low=0.1, high=3, step=0.1, start=1, unit="times the detail added"),
            make=lambda s: Sharpen(amount=s),
        ),
        "rotate": ChangeTool(
            label="Turned",
            slider=Slider(low=-30, high=30, step=0.5, start=3, unit="degrees"),
            make=lambda s: Rotate(degrees=s),
        ),
        "noise": ChangeTool(
            label="Noise, normal",
            slider=Slider(low=1, high=32, step=1, start=4, unit="of 255 steps, deviation"),
            make=lambda s: GaussianNoise(sigma=s),
        ),
        "sign": ChangeTool(
            label="Noise, as large as an attack",
            slider=_LINF,
            make=lambda s: SignNoise(size=s),
        ),
    }
)
