"""Files of arrays, whole and damaged: the right content or one sentence, and nothing else."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from reluguard.detector.arrays import find_place, read_arrays, write_arrays
from reluguard.detector.errors import GuardError
from tests.damage import DAMAGES, HARMLESS, flips, rewritten

ARRAYS: dict[str, NDArray[Any]] = {
    "images": np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3),
    "labels": np.arange(4),
    "turned": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
}
Damage = Callable[[bytes], bytes]


def read(file: Path, **options: Any) -> dict[str, NDArray[Any]]:
    return read_arrays(file, *ARRAYS, error=GuardError, **options)


def assert_right(found: dict[str, NDArray[Any]]) -> None:
    assert set(found) == set(ARRAYS)
    for name, values in ARRAYS.items():
        assert_array_equal(found[name], values, strict=True)


def refusal(call: Callable[[], Any], file: Path) -> str | None:
    """Return what a call said of a file, in one line that names it; None if it went well."""
    try:
        call()
    except GuardError as error:
        text = str(error)
        assert str(file) in text
        assert "\n" not in text
        return text
    return None


plain = some.arrays(
    st.sampled_from(["u1", "<i8", ">f4", "f2", "?", "U3", "M8[s]"]),
    some.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@given(
    arrays=st.dictionaries(st.text("abc", min_size=1, max_size=4), plain, max_size=3),
    compress=st.booleans(),
)
def test_reading_undoes_writing_and_so_does_numpy(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, NDArray[Any]], *, compress: bool
) -> None:
    """Whatever was written comes back, and NumPy reads the same."""
    file = tmp_path_factory.mktemp("npz") / "a.npz"
    file.write_bytes(rewritten(arrays, compress=compress))
    found = read_arrays(file, *arrays, error=GuardError)
    with np.load(file) as numpys:
        assert set(numpys.files) == set(arrays)
        for name, values in arrays.items():
            assert_array_equal(found[name], values, strict=True)
            assert found[name].dtype == values.dtype == numpys[name].dtype


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
def test_what_numpy_wrote_is_read(tmp_path: Path, write: Callable[..., None]) -> None:
    """Files of NumPy's own are read as it reads them, and its order in memory is kept."""
    write(tmp_path / "a.npz", **ARRAYS)
    assert_right(read(tmp_path / "a.npz"))
    assert read(tmp_path / "a.npz")["turned"].flags.f_contiguous


@pytest.mark.parametrize("compress", [False, True], ids=["stored", "compressed"])
def test_a_flipped_byte_is_told_or_does_no_harm(tmp_path: Path, *, compress: bool) -> None:
    """Wherever it is, the arrays are right or the file is named with what is wrong."""
    file = tmp_path / "a.npz"
    told = 0
    for bad in flips(rewritten(ARRAYS, compress=compress), 200):
        file.write_bytes(bad)
        told += refusal(lambda: assert_right(read(file)), file) is not None
    assert told > 100


@pytest.mark.parametrize("harm", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("compress", [False, True], ids=["stored", "compressed"])
def test_every_damage_is_told(tmp_path: Path, harm: Damage, *, compress: bool) -> None:
    """No damage escapes as another error, and none makes room for what is not there."""
    file = tmp_path / "a.npz"
    file.write_bytes(harm(rewritten(ARRAYS, compress=compress)))
    assert refusal(lambda: read(file), file) is not None


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_does_no_harm_is_read(tmp_path: Path, change: Damage) -> None:
    """An archive packed again, or with something before it, still holds its arrays."""
    (tmp_path / "a.npz").write_bytes(change(rewritten(ARRAYS)))
    assert_right(read(tmp_path / "a.npz"))


def test_every_cut_is_told(tmp_path: Path) -> None:
    """A file that ends early is refused, wherever it ends."""
    whole = rewritten(ARRAYS)
    file = tmp_path / "a.npz"
    for end in range(0, len(whole), 23):
        file.write_bytes(whole[:end])
        assert refusal(lambda: read(file), file) is not None


def test_a_flipped_byte_is_told_of_what_stays_on_disk(tmp_path: Path) -> None:
    """What is mapped was checked as what is read is; what has no place is read or refused."""
    file = tmp_path / "a.npz"
    images = ARRAYS["images"]

    def look() -> None:
        place = find_place(file, "images", error=GuardError)
        if place is not None:
            assert_array_equal(np.array(place.mapped()), images, strict=True)
        else:
            assert_right(read(file))

    told = 0
    for bad in flips(rewritten(ARRAYS, compress=False), 200):
        file.write_bytes(bad)
        told += refusal(look, file) is not None
    assert told > 50


def test_only_large_arrays_in_order_have_a_place(tmp_path: Path) -> None:
    """Compressed, small, turned or missing ones are read in another way."""
    file = tmp_path / "a.npz"
    file.write_bytes(rewritten(ARRAYS, compress=False))
    place = find_place(file, "images", error=GuardError, least_bytes=60)
    assert place is not None
    assert_array_equal(np.array(place.mapped()), ARRAYS["images"])
    assert find_place(file, "images", error=GuardError, least_bytes=61) is None
    assert find_place(file, "turned", error=GuardError) is None
    assert find_place(file, "other", error=GuardError) is None
    file.write_bytes(rewritten(ARRAYS))
    assert find_place(file, "images", error=GuardError) is None


def test_something_else_in_its_place_is_named(tmp_path: Path) -> None:
    """A folder, a pipe and nothing at all are said to be what they are."""
    (tmp_path / "folder.npz").mkdir()
    os.mkfifo(tmp_path / "pipe.npz")
    for name, fact in (("folder", "is a folder"), ("pipe", "is no file"), ("none", "is not there")):
        with pytest.raises(GuardError, match=rf"expected a .npz file of .*{name}\.npz {fact}$"):
            read(tmp_path / f"{name}.npz")


def test_what_can_be_done_is_said(tmp_path: Path) -> None:
    """The message names what was expected, the fact and the remedy the caller gives."""
    file = tmp_path / "a.npz"
    file.write_bytes(DAMAGES["encrypted"](rewritten(ARRAYS)))
    expected = f"expected a shard, {file} holds images encrypted: remove it"
    with pytest.raises(GuardError, match=expected):
        read(file, what="a shard", remedy="remove it")
    file.write_bytes(rewritten({"images": np.zeros(2)}))
    expected = "expected arrays images, labels and turned in .*, labels and turned missing: it "
    with pytest.raises(GuardError, match=expected + "has images: remove it"):
        read(file, remedy="remove it")


def test_optional_arrays_are_read_where_they_are(tmp_path: Path) -> None:
    """One that is not there is left out, and nothing else is read."""
    (tmp_path / "a.npz").write_bytes(rewritten(ARRAYS))
    found = read_arrays(
        tmp_path / "a.npz", "labels", error=GuardError, optional=("turned", "steps")
    )
    assert set(found) == {"labels", "turned"}


def test_a_declared_archive_is_held_to_its_declaration(tmp_path: Path) -> None:
    """Other names, dtypes, shapes or sizes than were declared are refused before they are read."""
    file = tmp_path / "only-a-name.npz"
    like = {name: (values.dtype, values.shape) for name, values in ARRAYS.items()}

    def declared(content: bytes, **options: Any) -> dict[str, NDArray[Any]]:
        return read_arrays(file, error=GuardError, like=like, content=content, **options)

    assert_right(declared(rewritten(ARRAYS)))
    for changed, message in (
        ({**ARRAYS, "more": np.zeros(2)}, "holds others"),
        ({**ARRAYS, "labels": np.arange(5)}, r"expected labels of int64 \(4,\) .* int64 \(5,\)"),
        ({**ARRAYS, "labels": np.arange(4.0)}, r"expected labels of int64 .*, got float64"),
    ):
        with pytest.raises(GuardError, match=message):
            declared(rewritten(changed))
    with pytest.raises(GuardError, match="unpacks to 188 bytes, more than 187"):
        declared(rewritten(ARRAYS), most_bytes=187)


def test_objects_are_never_written() -> None:
    """An array of Python objects would be pickled."""
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_arrays(io.BytesIO(), {"a": np.array([{}], object)})
