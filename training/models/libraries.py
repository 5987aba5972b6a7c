"""Networks by the name that torchvision or timm has for them, with what the library says of them.

Nothing is downloaded: weights are a file that is given, or one that the library keeps already.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from reluguard.detector.errors import ModelError, did_you_mean
from reluguard.detector.onnx_file.kinds import kind_of
from reluguard.training.data.preprocessing import Preprocessing, given_preprocessing
from reluguard.training.models.export import quiet
from reluguard.training.models.torch_model import TorchModel

__all__ = ["open_named"]

# under which training scripts keep the weights, beside the optimiser's state and the like
_WITHIN = ("state_dict", "model_state_dict", "model", "model_ema", "net")
_PREFIXES = ("module.", "model.", "_orig_mod.")


def open_named(text: str, weights: Path | None) -> TorchModel:
    """Return a network of a library, in evaluation mode, with its weights.

    Of weights for another number of classes than the library's own the network has that many.

    Args:
        text: "torchvision:NAME" or "timm:NAME"; of torchvision also with the entry of its weights
            that preprocessing is of, "torchvision:resnet50:IMAGENET1K_V1".
        weights: a file of its weights by name; by default what the library keeps on this machine.

    Raises:
        ModelError: there is no such network, no weights are at hand, or they don't fit.
    """
    library, _, name = text.partition(":")
    return (_torchvision if library == "torchvision" else _timm)(name, weights)


def _torchvision(text: str, weights: Path | None) -> TorchModel:
    from torchvision import models

    name, _, wanted = text.partition(":")
    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(_unknown("torchvision's networks", name, known))
    entries = {entry.name: entry for entry in models.get_model_weights(name)}
    if wanted and wanted not in entries:
        raise ModelError(_unknown(f"torchvision's weights of {name}", wanted, list(entries)))
    default = models.get_model_weights(name).DEFAULT
    kept = Path(torch.hub.get_dir()) / "checkpoints"
    if wanted:
        entry = entries[wanted]
    elif weights is not None:
        own = [one for one in entries.values() if _file(one) == weights.name]
        entry = own[0] if own else default
    else:
        there = [one for one in entries.values() if (kept / _file(one)).is_file()]
        entry = default if default in there or not there else there[0]
    file = weights or kept / _file(entry)
    if not file.is_file() and weights is None:
        raise ModelError(
            f"torchvision:{name} needs its weights, and nothing is downloaded here: give a file of "
            f"yours with --weights FILE, or torchvision's own, {entry.url}, which is also "
            f"found in {kept}"
        )
    module = _with_weights(
        lambda **how: models.get_model(name, weights=None, **how), file, f"torchvision:{name}"
    )
    categories = tuple(entry.meta.get("categories", ()))
    return _model(
        module,
        f"torchvision:{name}",
        given_preprocessing(entry.transforms()),
        categories,
        f"preprocessing is torchvision's for {entry}",
    )


def _file(entry: Any) -> str:
    return str(entry.url).rpartition("/")[2]


def _timm(name: str, weights: Path | None) -> TorchModel:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModelError(f"timm:{name} needs timm: pip install timm") from error
    known = timm.list_models(exclude_filters="")
    if name.partition(".")[0] not in known:
        raise ModelError(_unknown("timm's networks", name, known))
    if weights is None:
        weights = _kept_by_timm(timm, name)
    module = _with_weights(
        lambda **how: timm.create_model(name, pretrained=False, **how), weights, f"timm:{name}"
    )
    config = timm.data.resolve_data_config({}, model=module)
    how = given_preprocessing(config)
    return _model(
        module, f"timm:{name}", how, _timm_names(timm, module), "preprocessing is timm's for it"
    )


def _kept_by_timm(timm: Any, name: str) -> Path:
    """Return the file of weights that timm has downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    place = getattr(config, "hf_hub_id", None)
    if place:
        for file in ("model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(place, file)
            if isinstance(found, str):
                return Path(found)
    raise ModelError(
        f"timm:{name} needs its weights, and nothing is downloaded here: give a file of yours with "
        f"--weights FILE, or let timm fetch its own once, by timm.create_model({name!r}, "
        "pretrained=True)"
    )


def _timm_names(timm: Any, module: Any) -> tuple[str, ...]:
    subset = timm.data.infer_imagenet_subset(module)
    if not subset:
        return ()
    info = timm.data.ImageNetInfo(subset)
    return tuple(info.index_to_description(i) for i in range(info.num_classes()))


def _model(
    module: Any, source: str, how: Preprocessing, names: Sequence[str], word: str
) -> TorchModel:
    """Return a network with what its library says, but names of other classes than it has."""
    size = how.files.size if how.files is not None else None
    shape = None if size is None else (3, *size)
    example = torch.zeros(1, *(shape or (3, 224, 224)))
    with torch.no_grad(), quiet():
        classes = module(example).shape[-1]
    return TorchModel(
        program=module,
        source=source,
        shape=shape,
        preprocessing=how,
        names=tuple(names) if len(names) == classes else (),
        words=(f"{word}: {how.words()}",),
    )


def _with_weights(build: Callable[..., Any], file: Path, source: str) -> Any:
    """Return a network with the weights in a file, of as many classes as those are for."""
    state = _read_weights(file)
    with quiet(), torch.random.fork_rng(devices=[]):
        module = build()
        own = module.state_dict()
        classes = {
            len(state[key])
            for key, value in own.items()
            if key in state and state[key].shape != value.shape and state[key].ndim
        }
        if len(classes) == 1:
            module = build(num_classes=classes.pop())
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise ModelError(
            f"the weights in {file} are not those of {source}: {lines[0][:200].rstrip('. ')}"
        ) from error
    return module.eval()


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Return the weights in a file by name."""
    if not file.is_file():
        raise ModelError(f"expected a file of weights, {file} is not there")
    try:
        if kind_of(file) == "safetensors":
            from safetensors.torch import load_file

            read: Any = load_file(file)
        else:
            read = torch.load(file, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise ModelError(f"{file} needs safetensors: pip install safetensors") from error
    except Exception as error:  # a pickle of anything else than weights, or a damaged file
        raise ModelError(
            f"expected weights by name in {file}, as torch.save(model.state_dict(), file) writes "
            "them: it holds something else, which is not opened, as that could run its code"
        ) from error
    for key in _WITHIN:
        if isinstance(read, Mapping) and isinstance(read.get(key), Mapping):
            read = read[key]
            break
    if not isinstance(read, Mapping) or not all(isinstance(v, torch.Tensor) for v in read.values()):
        raise ModelError(f"expected weights by name in {file}, got {type(read).__name__}")
    state = dict(read)
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _unknown(where: str, name: str, known: Sequence[str]) -> str:
    return f"expected a name among {where}, got {name!r}{did_you_mean(name, known)}"
