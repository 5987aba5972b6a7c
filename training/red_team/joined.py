"""Both looks of a guard as one graph that looks at every image twice: what is differentiated.

The second look's network stands beside the first one's, its names changed; nothing is shared, since
what is run here is run for its gradient, not for its cost.
"""

from dataclasses import replace

import onnx
from onnx import helper

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.compile.graph import OURS
from reluguard.detector.compile.guarded import LOGITS, RATES, compile_guard
from reluguard.detector.errors import GuardError
from reluguard.detector.looks.export import defined_names, join_opsets, rename
from reluguard.detector.looks.graph import (
    FIRST_LOGITS,
    FIRST_RATES,
    SECOND_FEATURES,
    SECOND_SCORE,
    compile_second,
)
from reluguard.detector.looks.views import viewed
from reluguard.detector.model import Production

__all__ = ["TWICE_FEATURES", "TWICE_SCORE", "both_looks"]

_AGAIN = "again/"  # in the names of what is the second look's
TWICE_SCORE, TWICE_FEATURES = f"{OURS}{_AGAIN}score", f"{OURS}{_AGAIN}features"


def both_looks(
    production: Production, artifact: GuardArtifact, other: Production | None
) -> onnx.ModelProto:
    """Return the guarded model with the second look at every row in it.

    Outputs are those of `compile_guard`, and `TWICE_SCORE` float32 (N,) and `TWICE_FEATURES`
    float32 (N, X).

    Args:
        production: the model.
        artifact: its guard, which looks twice.
        other: the network that looks again, where it is another.

    Raises:
        GuardError: the guard looks once, or another network looks and is not given.
        ModelError: the other network is of another opset than the model.
    """
    second, manifest = artifact.second, artifact.manifest
    if second is None or (second.look.is_other and other is None):
        raise GuardError(f"expected {artifact.path} with its second look and who takes it")
    model = compile_guard(
        production, manifest.taps, artifact.head, fpr=manifest.fpr, readings=True, features=True
    )
    network = other if second.look.is_other and other is not None else production
    again = compile_second(
        viewed(network, replace(manifest.input, name=network.input.name), second.look.view),
        second,
        manifest.taps,
        features=True,
    )
    join_opsets(model, again)
    names = {name: _renamed(name) for name in defined_names(again.graph)}
    names |= {FIRST_RATES: RATES, FIRST_LOGITS: LOGITS}
    names |= {network.input.name: production.input.name}
    names |= {SECOND_SCORE: TWICE_SCORE, SECOND_FEATURES: TWICE_FEATURES}
    rename(again.graph, names)
    model.graph.node.extend(again.graph.node)
    model.graph.initializer.extend(again.graph.initializer)
    model.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in (TWICE_SCORE, TWICE_FEATURES)
    )
    return model


def _renamed(name: str) -> str:
    """Return a name for the second look, which says as before whether it is the guard's own."""
    return f"{OURS}{_AGAIN}{name.removeprefix(OURS)}" if name.startswith(OURS) else _AGAIN + name
