"""Local functions written out where they are called, so that what lies in them can be read."""

import onnx
import onnx.inliner

__all__ = ["inlined"]


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its local functions written out; itself if it has none.

    ONNX Runtime does the same when it loads a model, and there too the operators of a function come
    to mean what they mean in the model's version, whatever the function's own: a Softmax of version
    11 in a model of 17 is one of 17. So its answers stay what they are.
    """
    if not model.functions:
        return model
    own = {entry.domain: entry.version for entry in model.opset_import}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for function in copy.functions:
        for entry in function.opset_import:
            entry.version = own.get(entry.domain, entry.version)
    return onnx.inliner.inline_local_functions(copy)
