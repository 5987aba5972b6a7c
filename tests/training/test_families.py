"""Real families of networks on the whole way, as `benchmarks/families` takes them."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.families.networks import export, fitted
from benchmarks.families.pictures import digits, digits_in_parts
from benchmarks.families.recipes import EVALUATED, HARMLESS
from benchmarks.families.way import Way, whole_way
from benchmarks.forms import FORMS

SIDE = 64


@pytest.mark.slow
@pytest.mark.timeout(900)  # some 40 s of a processor, which others may share
@pytest.mark.parametrize("form", ["float32", "int8 QOperator"])
def test_a_network_of_hard_swishes_goes_the_whole_way(form: str, tmp_path: Path) -> None:
    """Exported, fitted, served, asked, judged and scored, in floats and in integer operators."""
    parts = digits_in_parts(tmp_path, SIDE, {"train": 700, "fit": 120, "judge": 30})
    plain = export(fitted("mobilenet_v3_small", *parts.taught()), SIDE, tmp_path / "plain.onnx")
    FORMS[form](plain, parts.tensor("train")[:24], tmp_path / "model.onnx")
    way = Way(
        model=tmp_path / "model.onnx",
        parts=parts,
        recipe="benchmarks.families.recipes:tiny",
        second="auto",
        limit=30,
        attacks=EVALUATED,
        harmless=HARMLESS,
    )
    found = whole_way(way, tmp_path)
    assert "trouble" not in found
    fit = found["fit"]
    assert (fit["gates"]["read"], fit["gates"]["found"]) == (33, 33)
    assert fit["succeeded"] > fit["tried"] / 2
    assert found["serve"]["same_bits"] == found["serve"]["same_bits_of_files"] == 8
    assert found["score"]["as_served"] == 8
    assert found["evaluate"]["auroc"] > 0.7
    assert [step.get("odd", []) for step in found.values()] == [[]] * len(found)


def test_forms_are_what_they_say(tmp_path: Path) -> None:
    """Half precision inside, bfloat16 weights, and the answers of the plain network nearly."""
    import onnx

    from reluguard.detector.session import open_session, run_session

    data = digits(32)
    tensors = data.images[:64].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    network = fitted("shufflenet_v2_x0_5", tensors, data.labels[:64])
    plain = export(network, 32, tmp_path / "plain.onnx")
    feeds = {"image": tensors[:8]}
    (wanted,) = run_session(open_session(onnx.load(plain), threads=1), feeds, ["logits"])
    for form, kind in (("float16", onnx.TensorProto.FLOAT16), ("bfloat16", 16)):
        FORMS[form](plain, tensors[:1], tmp_path / "model.onnx")
        model = onnx.load(tmp_path / "model.onnx")
        kinds = {item.data_type for item in model.graph.initializer if len(item.dims) == 4}
        assert kinds == {kind}
        (found,) = run_session(open_session(model, threads=1), feeds, ["logits"])
        assert np.abs(found - wanted).max() < 0.2 * np.ptp(wanted)
