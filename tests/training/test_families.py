"""Real families of networks on the whole way, as `benchmarks/families.py` takes them."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.families import FAMILIES, FITTING, TRAINING, digits, export, fitted, tiny, whole_way
from benchmarks.forms import FORMS


@pytest.mark.slow
@pytest.mark.timeout(900)  # some 25 s of a processor, which others may share
@pytest.mark.parametrize("form", ["float32", "int8 QOperator"])
def test_a_network_of_hard_swishes_goes_the_whole_way(form: str, tmp_path: Path) -> None:
    """Exported, fitted, judged, served and asked, in floats and in integer operators."""
    name, few = "mobilenet_v3_small", 120
    data = digits(FAMILIES[name].side)
    network = fitted(name, data.take(np.arange(TRAINING)))
    plain = export(network, FAMILIES[name].side, tmp_path / "plain.onnx")
    FORMS[form](plain, data.images[:24], tmp_path / "model.onnx")
    start = TRAINING + FITTING
    row = whole_way(
        form,
        tmp_path / "model.onnx",
        data.take(np.arange(TRAINING, TRAINING + few)),
        data.take(np.arange(start, start + 30)),
        tmp_path,
        recipe=tiny(),
    )
    assert row.trouble == ""
    assert row.gates == "33/33"
    assert row.same == "8/8"
    fooled, tried = map(int, row.fooled.split("/"))
    assert fooled > tried / 2
    assert float(row.judged) > 0.7


def test_forms_are_what_they_say(tmp_path: Path) -> None:
    """Half precision inside, bfloat16 weights, and the answers of the plain network nearly."""
    import onnx

    from reluguard.detector.session import open_session, run_session

    data = digits(32)
    network = fitted("shufflenet_v2_x0_5", data.take(np.arange(64)))
    plain = export(network, 32, tmp_path / "plain.onnx")
    feeds = {"image": data.images[:8].transpose(0, 3, 1, 2).astype(np.float32) / 255}
    (wanted,) = run_session(open_session(onnx.load(plain), threads=1), feeds, ["logits"])
    for form, kind in (("float16", onnx.TensorProto.FLOAT16), ("bfloat16", 16)):
        FORMS[form](plain, data.images[:1], tmp_path / "model.onnx")
        model = onnx.load(tmp_path / "model.onnx")
        kinds = {item.data_type for item in model.graph.initializer if len(item.dims) == 4}
        assert kinds == {kind}
        (found,) = run_session(open_session(model, threads=1), feeds, ["logits"])
        assert np.abs(found - wanted).max() < 0.2 * np.ptp(wanted)
