"""Local functions written out where they are called, so that what lies in them can be read."""

import onnx
import onnx.defs
import onnx.inliner

__all__ = ["inlined"]


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its local functions written out; itself if it has none.

    ONNX Runtime does the same when it loads a model, so its answers stay what they are. A function
    of operators that changed between its version and the model's stays a function.
    """
    if not model.functions:
        return model
    own = {entry.domain: entry.version for entry in model.opset_import}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for function in copy.functions:
        for entry in function.opset_import:
            wanted = own.get(entry.domain, entry.version)
            ops = {node.op_type for node in function.node if node.domain == entry.domain}
            if all(_means_the_same(op, entry.domain, (entry.version, wanted)) for op in ops):
                entry.version = wanted
    return onnx.inliner.inline_local_functions(copy)


def _means_the_same(op: str, domain: str, versions: tuple[int, int]) -> bool:
    if versions[0] == versions[1]:
        return True
    try:
        old, new = (onnx.defs.get_schema(op, version, domain) for version in versions)
    except onnx.defs.SchemaError:
        return False
    return old.since_version == new.since_version
