"""One file of both looks: what it says is what the runtime says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from reluguard.detector.errors import ModelError
from reluguard.detector.looks.export import export_twice
from reluguard.detector.looks.judging import Looks
from reluguard.detector.runtime import Guard
from reluguard.detector.session import open_session
from tests.conftest import images, network
from tests.looking import looking_twice

PICTURES = images(60, seed=1)


def check(guard: Guard) -> onnx.ModelProto:
    """Hold the exported file to the guard, batch by batch; return it."""
    exported = guard.exported()
    onnx.checker.check_model(exported)
    session = open_session(exported)
    names = [output.name for output in session.get_outputs()]
    looks = set()
    for size in (1, 7, 60):
        for start in range(0, 60, size):
            tensor = guard.spec.to_tensor(PICTURES[start : start + size])
            found = dict(zip(names, session.run(None, {guard.spec.name: tensor}), strict=True))
            wanted = guard.inspect_tensor(tensor)
            np.testing.assert_array_equal(found["reluguard_look"], wanted.look)
            np.testing.assert_allclose(found["reluguard_score"], wanted.score, atol=1e-3)
            np.testing.assert_allclose(found["reluguard_likelihood"], wanted.likelihood, atol=1e-3)
            np.testing.assert_array_equal(found["reluguard_is_adversarial"], wanted.is_adversarial)
            assert wanted.first is not None
            np.testing.assert_allclose(
                found["reluguard_first_score"], wanted.first.score, atol=1e-5
            )
            np.testing.assert_array_equal(found["logits"], wanted.outputs["logits"])
            assert found["reluguard_evidence"].shape == wanted.evidence.shape
            looks.update(wanted.look.tolist())
    assert 2 in looks
    return exported


@pytest.mark.parametrize("looks", ["suspicious", "always"])
@pytest.mark.parametrize("view", ["mirror", "smaller"])
def test_the_file_says_what_the_runtime_says(
    looks: Looks, view: str, tiny_model: Path, tiny_guard: Path, tmp_path: Path
) -> None:
    """Score, likelihood, verdict and which look decided, one image or many at a time."""
    folder = looking_twice(tiny_model, tiny_guard, tmp_path / "guard", view=view)
    exported = check(Guard.open(tiny_model, folder, looks=looks, threads=1))
    inner = next(node for node in exported.graph.node if node.op_type == "If")
    branch = next(item.g for item in inner.attribute if item.name == "then_branch")
    # the weights are in the file once
    assert not {"w1", "w2", "w3"} & {item.name.rpartition("/")[2] for item in branch.initializer}
    assert sum(item.name == "w2" for item in exported.graph.initializer) == 1


def test_another_network_brings_its_weights(
    tiny_model: Path, tiny_guard: Path, tmp_path: Path
) -> None:
    """Under the same names, and yet its own."""
    onnx.save(network(seed=5), tmp_path / "sibling.onnx")
    folder = looking_twice(
        tiny_model, tiny_guard, tmp_path / "guard", other=tmp_path / "sibling.onnx"
    )
    check(Guard.open(tiny_model, folder, threads=1))


def test_what_can_not_be_one_file_is_refused(
    tiny_model: Path, tiny_guard: Path, tmp_path: Path
) -> None:
    """A fixed batch can't be taken apart, and two opsets are two languages."""
    other = network(seed=5)
    del other.opset_import[:]
    other.opset_import.append(onnx.helper.make_opsetid("", 16))
    onnx.save(other, tmp_path / "sibling.onnx")
    folder = looking_twice(
        tiny_model, tiny_guard, tmp_path / "guard", other=tmp_path / "sibling.onnx"
    )
    guard = Guard.open(tiny_model, folder)
    with pytest.raises(ModelError, match="expected the other network in opset 17"):
        guard.exported()
    assert guard.again is not None
    with pytest.raises(ModelError, match="expected a model of any batch to look again"):
        export_twice(guard.compiled, guard.again, "image", 4, 0.05)
    assert replace(guard.spec, batch=4).batch == 4
    once = Guard.open(tiny_model, folder, looks="first")
    assert once.exported() is once.compiled
