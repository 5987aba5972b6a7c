"""What a ModelInfer request is answered: outputs by name, written as the protocol has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.service.models.models import VERSION, Model
from reluguard.service.protocols.inspection import Inspection
from reluguard.service.protocols.pb import open_inference as pb
from reluguard.service.protocols.policy import Detail
from reluguard.service.protocols.wire import datatype_of, write_tensor

__all__ = ["Answer", "answer_of", "encoded"]

_FRAMES = 256  # kinds of answer whose beginning is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer, before it is written.

    Attributes:
        id: as the caller gave it.
        model: who answered.
        guard: the digest of the guard that judged.
        parameters: of the answer, but for the guard's.
        tensors: the outputs by name, in the order they were asked for.
    """

    id: str
    model: Model
    guard: str
    parameters: Mapping[str, int | str]
    tensors: Mapping[str, NDArray[Any]]


def answer_of(name: str, model: Model, inspection: Inspection, wanted: list[str]) -> Answer:
    """Return the answer to a request.

    Args:
        name: as the caller calls it.
        model: who answers.
        inspection: what was found.
        wanted: names of outputs, in their order.
    """
    view = inspection.view
    verdicts = view.verdicts
    arrays: dict[str, NDArray[Any]] = {
        **verdicts.outputs,
        "reluguard_is_adversarial": verdicts.is_adversarial,
        "reluguard_likelihood": verdicts.likelihood,
        "reluguard_unscored": verdicts.unscored,
        "reluguard_score": verdicts.score,
        "reluguard_p_value": verdicts.p_value,
        "reluguard_evidence": verdicts.evidence,
        "reluguard_look": verdicts.look,
    }
    parameters: dict[str, int | str] = {}
    if view.detail is not Detail.NONE:
        parameters["reluguard_adversarial"] = int(np.count_nonzero(verdicts.is_adversarial))
        parameters["reluguard_unscored"] = int(np.count_nonzero(verdicts.unscored))
    if inspection.capture:
        parameters["reluguard_capture"] = inspection.capture
    return Answer(
        id=name,
        model=model,
        guard=inspection.version.digest,
        parameters=parameters,
        tensors={output: arrays[output] for output in wanted},
    )


def encoded(answer: Answer) -> bytes:
    """Return the serialised answer.

    Serialised messages put one behind the other are one message, so what one kind of request always
    gets is serialised once.
    """
    tensors = tuple(
        (name, datatype_of(array.dtype), array.shape) for name, array in answer.tensors.items()
    )
    own = pb.ModelInferResponse(
        id=answer.id,
        parameters={
            name: pb.InferParameter(int64_param=value)
            if isinstance(value, int)
            else pb.InferParameter(string_param=value)
            for name, value in answer.parameters.items()
        },
        raw_output_contents=[write_tensor(array) for array in answer.tensors.values()],
    )
    return _frame(answer.model.name, answer.guard, tensors) + own.SerializeToString()


@lru_cache(maxsize=_FRAMES)
def _frame(model: str, digest: str, tensors: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    """Return what all answers with these tensors begin with: name, datatype and shape of each."""
    message = pb.ModelInferResponse(
        model_name=model,
        model_version=VERSION,
        parameters={"reluguard_guard": pb.InferParameter(string_param=digest)},
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=shape)
            for name, datatype, shape in tensors
        ],
    )
    encoded: bytes = message.SerializeToString()
    return encoded
