"""Options that several commands take, each written once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from reluguard.detector.looks.judging import Looks
    from reluguard.training.data.preprocessing import Preprocessing

__all__ = [
    "AnyModel",
    "Bgr",
    "Classes",
    "Data",
    "EitherModel",
    "GuardFolder",
    "GuardModel",
    "InputShape",
    "Json",
    "LooksWanted",
    "Mean",
    "Output",
    "Pictures",
    "Pixels",
    "Provider",
    "Scale",
    "SecondModel",
    "Seed",
    "Std",
    "Threads",
    "Twin",
    "Weights",
    "Workers",
    "looks_given",
    "onnx_file",
    "preprocessing_of",
    "shape_given",
]

_ANY = (
    "The production model: an ONNX file; a .pt2 or TorchScript file; torchvision:NAME or "
    "timm:NAME, with --weights; or package.module:function or file.py:function, which gives "
    "your torch module."
)
AnyModel = Annotated[str, typer.Option("--model", help=_ANY)]
EitherModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help=f"{_ANY} [default: with --guard, what fit exported and put beside it, GUARD.onnx]",
    ),
]
GuardModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="The production model: an ONNX file, or what the guard was fitted to, as fit takes "
        "it. [default: what fit exported and put beside the guard, GUARD.onnx]",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="The weights of a model by name, as torch.save(model.state_dict(), FILE) writes them. "
        "Nothing is downloaded. [default: those that its library keeps on this machine]",
    ),
]
InputShape = Annotated[
    str | None,
    typer.Option(
        "--input-shape",
        help="The shape of one image in a torch model's input, like 3,224,224. [default: what the "
        "model, its library or the images say]",
    ),
]
GuardFolder = Annotated[Path, typer.Option("--guard", help="The guard's folder.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="Labelled images: an .npz with `images` uint8 (N, H, W, C) and `labels`, a folder "
        "per class, or torchvision:NAME:ROOT.",
    ),
]
Pictures = Annotated[
    str,
    typer.Option(
        "--data",
        help="Images with labels, as fit takes them; or pictures without: a file, a folder of "
        "files, or a pattern in quotes like 'photos/**/*.jpg'.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="How many threads a run has. [default: the usable cores]"
    ),
]
Provider = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        help="ONNX Runtime's execution provider, like CUDAExecutionProvider; may be repeated, "
        "first choice first. [CPUExecutionProvider]",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        min=0,
        help="The seed of every random choice: the same seed gives the same result.",
    ),
]
Twin = Annotated[
    str,
    typer.Option(
        "--twin",
        help="Where gradients come from: auto converts the ONNX file, package.module:function or "
        "file.py:function gives your torch module, none leaves only black-box attacks.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="How many processes share the work. [default: as cores and memory allow]",
    ),
]
LooksWanted = Annotated[
    str | None,
    typer.Option(
        "--looks",
        help="When the guard looks a second time: first (never), suspicious, or always, which "
        "alone helps against an attacker who knows of the first look. [suspicious, if it can]",
    ),
]
SecondModel = Annotated[
    Path | None,
    typer.Option(
        "--second-model",
        help="The ONNX file of the network that looks again, of a guard fitted with one. [the file "
        "of its name beside model or guard]",
    ),
]

# How pixels become the model's input: said to `fit`, which writes it into the guard, and to what
# works without a guard. A command that is given a guard takes all of it from there.
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        help="The name of the model's output with the class scores, where it has several.",
    ),
]
Scale = Annotated[
    float | None,
    typer.Option("--scale", help="What pixels of 0 to 255 are multiplied by. [default: 1/255]"),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        help="What is subtracted after scaling: one value, or one per channel with "
        "commas. [default: 0]",
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        "--std", help="What is divided by after that: one value, or one per channel. [default: 1]"
    ),
]
Pixels = Annotated[
    str | None,
    typer.Option(
        "--preprocessing",
        help="From a file to the model's input: torchvision, timm, keras-tf, keras-caffe or "
        "opencv, or a preprocessor_config.json, timm's config.json or one of your own; settings "
        "may follow, like timm:crop_pct=0.95,method=bilinear. [default: stretched]",
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        "--classes",
        help="Which class each folder is: a file of names in the model's order (.txt or .json), "
        "alphabetical, or numbers that the folders begin with. [default: what the guard knows, "
        "found out without one]",
    ),
]
Bgr = Annotated[
    bool, typer.Option("--bgr", help="Give the model blue first, as OpenCV reads pictures.")
]


def looks_given(text: str | None) -> "Looks | None":
    """Return what `--looks` says, None where it is not given."""
    from reluguard.detector.looks.judging import looks_named

    return None if text is None else looks_named(text)


def onnx_file(model: str | None, guard: Path, weights: Path | None = None) -> Path:
    """Return the ONNX file of a guard's model, however the model is given.

    Where that is another file than was named, or none was, a line on standard error names it.
    """
    from reluguard.training.models.of_guard import guard_model

    file = guard_model(model, guard, weights=weights)
    if model is None:
        typer.echo(f"model: {file}, which lies beside the guard", err=True)
    elif str(file) != str(Path(model)):
        typer.echo(f"model: {file}, the export of {model}; both answer alike", err=True)
    return file


def shape_given(text: str | None) -> tuple[int, ...] | None:
    """Return what `--input-shape` says, None where it is not given."""
    if text is None:
        return None
    try:
        return tuple(int(side) for side in text.replace("x", ",").split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"expected whole numbers with commas between, like 3,224,224, got {text!r}"
        ) from error


def preprocessing_of(
    named: str | None, scale: float | None, mean: str | None, std: str | None, *, bgr: bool
) -> "Preprocessing | str | None":
    """Return what these options say of the pixels, None where they say nothing."""
    from reluguard.training.data.preprocessing import Preprocessing

    if scale is None and mean is None and std is None and not bgr:
        return named
    if named is not None:
        raise typer.BadParameter(
            "give --scale, --mean, --std and --bgr as settings of --preprocessing, like "
            f"{named}{',' if ':' in named else ':'}mean=0.5/0.5/0.5,bgr=yes"
        )
    return Preprocessing(scale=scale, mean=_floats(mean or "0"), std=_floats(std or "1"), bgr=bgr)


def _floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers with commas between, got {text!r}") from error
