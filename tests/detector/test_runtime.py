"""The guard in process: one answer however an image comes in.

An image alone and the same image in a batch may differ by BATCH_TOLERANCE in score: products of
other sizes add up in another order.
"""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from reluguard.detector.artifact import read_guard
from reluguard.detector.errors import GuardError, ImageError, ModelError, SettingsError
from reluguard.detector.head import conformal_p_values, threshold_at
from reluguard.detector.images import Images, InputSpec
from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.runtime import Guard, Reader, in_batches
from reluguard.detector.session import open_session, run_session
from reluguard.detector.taps import find_taps
from reluguard.detector.verdict import Verdicts

BATCH_TOLERANCE = 1e-4

Network = Callable[..., onnx.ModelProto]


@pytest.fixture(scope="module")
def guard(tiny_model: Path, tiny_guard: Path) -> Guard:
    return Guard.open(tiny_model, tiny_guard, threads=1)


@pytest.fixture(scope="module")
def images(make_images: Callable[..., Images]) -> Images:
    return make_images(40, seed=7)


def png(image: Images) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0]).save(buffer, "PNG")
    return buffer.getvalue()


def assert_same(a: Verdicts, b: Verdicts) -> None:
    for name in ("prediction", "score", "likelihood", "p_value", "is_adversarial", "evidence"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_every_way_in_gives_the_same_verdicts(guard: Guard, images: Images) -> None:
    """Pixels, the model's own tensor and PNG files are one request."""
    by_images = guard.inspect(images)
    assert_same(by_images, guard.inspect_tensor(guard.spec.to_tensor(images)))
    assert_same(by_images, guard.inspect_encoded([png(image) for image in images]))
    assert_same(by_images, guard(images))


def test_production_outputs_are_the_plain_models(
    guard: Guard, tiny_model: Path, images: Images
) -> None:
    """What the guard hands on is what the model gives without it, bit for bit."""
    tensor = guard.spec.to_tensor(images)
    plain = open_session(tiny_model.read_bytes(), threads=1)
    (logits,) = run_session(plain, {"image": tensor}, ["logits"])
    verdicts = guard.inspect(images)
    np.testing.assert_array_equal(verdicts.outputs["logits"], logits)
    np.testing.assert_array_equal(verdicts.prediction, logits.argmax(axis=1))


def test_an_image_is_judged_by_itself(guard: Guard, images: Images) -> None:
    """A row of a batch is what the image gets alone, within the stated tolerance."""
    whole = guard.inspect(images)
    for i in (0, 17, 39):
        alone = guard.inspect(images[i : i + 1])
        assert alone.prediction[0] == whole.prediction[i]
        np.testing.assert_allclose(alone.score[0], whole.score[i], atol=BATCH_TOLERANCE)
        np.testing.assert_allclose(alone.evidence[0], whole.evidence[i], atol=BATCH_TOLERANCE)


def test_more_images_than_one_run_takes_come_back_in_order(
    guard: Guard, make_images: Callable[..., Images]
) -> None:
    """A thousand images are run in parts, and each keeps its place."""
    many = make_images(1000, seed=3)
    verdicts = guard.inspect(many)
    assert len(verdicts) == 1000
    np.testing.assert_allclose(
        verdicts.score[700:720], guard.inspect(many[700:720]).score, atol=BATCH_TOLERANCE
    )


def test_verdicts_follow_from_scores(guard: Guard, images: Images) -> None:
    """Threshold and p-value are those of the calibration scores, and they agree."""
    verdicts = guard.inspect(images)
    clean = guard.artifact.head.clean_scores
    np.testing.assert_array_equal(verdicts.p_value, conformal_p_values(verdicts.score, clean))
    np.testing.assert_array_equal(verdicts.is_adversarial, verdicts.p_value <= guard.fpr)
    assert guard.threshold == threshold_at(guard.fpr, clean)


def test_a_tie_with_the_threshold_is_clean(guard: Guard, images: Images) -> None:
    """Scores that were seen in calibration are judged as their p-values say, the limit included."""
    clean = guard.artifact.head.clean_scores
    raw = guard.run(guard.spec.to_tensor(images))
    outputs = {name: np.repeat(rows[:1], len(clean), axis=0) for name, rows in raw.outputs.items()}
    raw = replace(raw, score=clean, outputs=outputs)
    verdicts = guard.verdicts(raw)
    assert np.float32(guard.threshold) in clean
    np.testing.assert_array_equal(verdicts.is_adversarial, verdicts.p_value <= guard.fpr)


def test_another_false_positive_rate_moves_only_the_verdict(
    tiny_model: Path, tiny_guard: Path, images: Images
) -> None:
    """A laxer rate calls more images adversarial; the scores stay."""
    strict, lax = (Guard.open(tiny_model, tiny_guard, threads=1, fpr=fpr) for fpr in (0.01, 0.5))
    a, b = strict.inspect(images), lax.inspect(images)
    np.testing.assert_array_equal(a.score, b.score)
    assert a.is_adversarial.sum() < b.is_adversarial.sum()
    assert (a.is_adversarial <= b.is_adversarial).all()


@pytest.mark.parametrize("rows", [1, 4, 6, 13])
def test_a_fixed_batch_takes_any_number_of_images(
    rows: int,
    make_network: Network,
    make_guard: Callable[..., Path],
    guard: Guard,
    images: Images,
    tmp_path: Path,
) -> None:
    """A model fixed to six rows is filled up and the filling is cut off again."""
    onnx.save(make_network(batch=6), tmp_path / "six.onnx")
    folder = make_guard(tmp_path / "six.onnx", tmp_path / "guard")
    fixed = Guard.open(tmp_path / "six.onnx", folder, threads=1).inspect(images[:rows])
    assert len(fixed) == rows
    assert fixed.outputs["logits"].shape == (rows, 4)
    free = guard.inspect(images[:rows])  # the same weights with the batch free
    np.testing.assert_allclose(fixed.score, free.score, atol=0.05)
    np.testing.assert_array_equal(fixed.prediction, free.prediction)


def test_threads_get_the_same_answers(guard: Guard, images: Images) -> None:
    """Eight threads that ask for different images at once each get their own verdicts."""
    alone = [guard.inspect(images[i : i + 4]) for i in range(0, 40, 4)]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(guard.inspect, images[i : i + 4]) for i in range(0, 40, 4)] * 5
        for i, answer in enumerate(asked):
            assert_same(answer.result(), alone[i % 10])


def test_optimisation_changes_no_verdict(
    tiny_model: Path, tiny_guard: Path, guard: Guard, images: Images
) -> None:
    """A guard opened without ONNX Runtime's rewriting says the same."""
    plain = Guard(load_production(tiny_model), read_guard(tiny_guard), threads=1, optimise=False)
    np.testing.assert_allclose(
        plain.inspect(images).score, guard.inspect(images).score, atol=BATCH_TOLERANCE
    )


def test_the_exported_bytes_give_the_same_scores(guard: Guard, images: Images) -> None:
    """The compiled model runs in bare ONNX Runtime, without us."""
    import onnxruntime as ort

    session = ort.InferenceSession(
        guard.compiled.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    score, adversarial = session.run(
        ["reluguard_score", "reluguard_is_adversarial"], {"image": guard.spec.to_tensor(images)}
    )
    verdicts = guard.inspect(images)
    np.testing.assert_allclose(score, verdicts.score, atol=BATCH_TOLERANCE)
    np.testing.assert_array_equal(adversarial, verdicts.is_adversarial)


def test_the_reader_reads_what_the_guard_was_made_of(tiny_model: Path, tiny_guard: Path) -> None:
    """Rates of the golden images come back as they were stored."""
    artifact = read_guard(tiny_guard)
    production = load_production(tiny_model)
    reader = Reader(production, artifact.manifest.input, artifact.manifest.taps, threads=1)
    rates, logits = reader.read(artifact.golden.images)
    np.testing.assert_array_equal(rates, artifact.golden.rates)
    np.testing.assert_array_equal(logits.argmax(axis=1), artifact.golden.prediction)


def test_a_pass_that_overflows_is_adversarial(guard: Guard) -> None:
    """Enormous finite values can't buy a clean verdict."""
    verdict = guard.inspect_tensor(np.full((1, 1, 8, 8), 3e38, np.float32))[0]
    assert verdict.is_adversarial
    assert verdict.p_value <= guard.fpr
    assert verdict.likelihood == 1


def test_what_does_not_fit_is_refused(guard: Guard) -> None:
    """Images, tensors and files are checked before the model runs."""
    with pytest.raises(ImageError, match=r"expected uint8 images of shape \(N, 8, 8, 1\)"):
        guard.inspect(np.zeros((1, 9, 8, 1), np.uint8))
    with pytest.raises(ImageError, match=r"float32 tensor of shape \(N, 1, 8, 8\), got float64"):
        guard.inspect_tensor(np.zeros((1, 1, 8, 8)))
    with pytest.raises(ImageError, match="got NaN or infinity in the tensor"):
        guard.inspect_tensor(np.full((1, 1, 8, 8), np.nan, np.float32))
    with pytest.raises(ImageError, match="expected a whole JPEG, PNG or WebP image"):
        guard.inspect_encoded([b"no image"])
    with pytest.raises(ImageError, match="got an empty batch"):
        guard.inspect_encoded([])
    with pytest.raises(ImageError, match="got an empty batch"):
        guard.inspect(np.zeros((0, 8, 8, 1), np.uint8))


def test_settings_without_meaning_are_refused(tiny_model: Path, tiny_guard: Path) -> None:
    """A provider that is not there, no thread, and rates the guard can't promise."""
    with pytest.raises(SettingsError, match=r"no provider NoSuchProvider in this ONNX Runtime"):
        Guard.open(tiny_model, tiny_guard, providers=["NoSuchProvider"])
    with pytest.raises(SettingsError, match="expected 1 or more threads, got 0"):
        Guard.open(tiny_model, tiny_guard, threads=0)
    with pytest.raises(SettingsError, match=r"needs 999 clean calibration images, .* has 199"):
        Guard.open(tiny_model, tiny_guard, fpr=0.001)
    with pytest.raises(SettingsError, match="expected a false-positive rate between 0 and 1"):
        Guard.open(tiny_model, tiny_guard, fpr=1.5)


def test_what_is_not_there_is_said(tiny_model: Path, tiny_guard: Path, tmp_path: Path) -> None:
    """A missing guard and a missing model each get their error."""
    with pytest.raises(GuardError, match=r"it has no file manifest\.json"):
        Guard.open(tiny_model, tmp_path / "none")
    with pytest.raises(ModelError, match="can't read the model"):
        Guard.open(tmp_path / "none.onnx", tiny_guard)


def test_an_output_without_a_row_per_image_is_refused(
    make_network: Network, images: Images, tmp_path: Path
) -> None:
    """Rows could not be handed back to their images."""
    model = make_network()
    model.graph.node.append(helper.make_node("ReduceMax", ["logits"], ["most"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("most", TensorProto.FLOAT, []))
    onnx.save(model, tmp_path / "model.onnx")
    production = load_production(tmp_path / "model.onnx", output="logits")
    with pytest.raises(ModelError, match=r"'most' has shape \(\) for 2 images"):
        infer_spec(production, (8, 8, 1))
    spec = InputSpec(name="image", height=8, width=8, channels=1)
    assert len(find_taps(production, spec)) == 2
    session = open_session(production.proto, threads=1)
    with pytest.raises(ModelError, match=r"expected 40 rows in most, got shape \(\)"):
        in_batches(session, spec, spec.to_tensor(images), ["logits", "most"])


def test_large_images_run_a_few_at_a_time() -> None:
    """What a run takes in memory grows with its images, however many somebody asks of."""
    seen: list[int] = []

    class Counting:
        def run(self, fetch: list[str], feeds: dict[str, NDArray[np.float32]]) -> list[Any]:
            seen.append(len(feeds["image"]))
            return [feeds["image"].sum(axis=(1, 2, 3)) for _ in fetch]

    for side, runs in ((224, [4, 4, 1]), (32, [9])):
        spec = InputSpec(name="image", height=side, width=side, channels=3)
        tensor = np.random.default_rng(2).random((9, 3, side, side), np.float32)
        (found,) = in_batches(cast("Any", Counting()), spec, tensor, ["sum"])
        assert seen == runs
        np.testing.assert_array_equal(found, tensor.sum(axis=(1, 2, 3)))
        seen.clear()


def test_readings_change_no_verdict_and_are_the_readers(
    tiny_model: Path, tiny_guard: Path, guard: Guard, images: Images
) -> None:
    """Two more outputs, and every other one bit for bit what it was."""
    reading = Guard.open(tiny_model, tiny_guard, threads=1, readings=True)
    with_readings, without = reading.inspect(images), guard.inspect(images)
    assert_same(with_readings, without)
    np.testing.assert_array_equal(with_readings.outputs["logits"], without.outputs["logits"])
    assert without.readings is None
    assert with_readings.readings is not None
    manifest = guard.artifact.manifest
    reader = Reader(load_production(tiny_model), manifest.input, manifest.taps, threads=1)
    rates, logits = reader.read(images)
    np.testing.assert_allclose(with_readings.readings.rates, rates, atol=1e-6)
    np.testing.assert_allclose(with_readings.readings.logits, logits, atol=1e-5)
