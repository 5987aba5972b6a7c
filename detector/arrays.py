"""Arrays in files that others may have damaged: one reader, one writer, one list of errors.

Reading goes from cheap and certain to costly: the kind of file, the names, each array's own header
against the size of its member, the sum of all sizes, and only then the numbers, under zip's sums.
Nothing is unpickled, and no header makes room for more than the file can hold.
"""

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["DAMAGE", "Like", "Place", "find_place", "read_arrays", "write_arrays"]

# what readers of files raise on bytes that are not what they should be: zipfile, zlib, NumPy's
# header reader, Pillow's decoders, json on text that nests too deep
DAMAGE: tuple[type[Exception], ...] = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
)
Like: TypeAlias = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
_AT_ONCE = 2**20
_ENCRYPTED = 1  # PKWARE's APPNOTE 4.4.4: bit 0 of the flags
_LENGTHS = 26  # 4.3.7: where a member's own header says how long its name and extra field are
_FIXED = 30  # how long that header is without them
_END, _COUNT, _LONGEST_END = b"PK\5\6", 10, 22 + 0xFFFF  # 4.3.16: the end of zip's list
_COUNTED_ELSEWHERE = 0xFFFF  # 4.4.1.4: in zip64's own end
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MOST_INFLATED = 1032  # zlib's technical details: what a byte of deflate can become
_PLAIN = "a .npz file of plain arrays"
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array lies in a file, as it lies in memory."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def mapped(self) -> np.memmap[Any, Any]:
        """Return the array where it lies; the file must not change while it is in use."""
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)


@dataclass(frozen=True, slots=True)
class _Member:
    """An array of an open archive whose header was read and fits its member."""

    name: str
    info: zipfile.ZipInfo
    stream: IO[bytes]
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """How many bytes its numbers take."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check_size(self, whole: int) -> None:
        """Raise ValueError unless the numbers fill the member, and the file can hold it."""
        room = self.info.compress_size
        if self.info.compress_type == zipfile.ZIP_DEFLATED:
            room *= _MOST_INFLATED
        there = self.info.file_size - self.stream.tell()
        if min(self.shape, default=0) < 0 or self.size != there or there > room:
            raise ValueError(f"{self.name} of {self.dtype} {self.shape} in {there} bytes")
        if self.info.header_offset + self.info.compress_size > whole:
            raise EOFError(f"{self.name} goes on behind the end of the file")

    def chunks(self) -> Iterator[bytes]:
        """Yield the numbers; zip's sum is checked at the end."""
        left = self.size
        while left:
            data = self.stream.read(min(left, _AT_ONCE))
            if not data:
                raise EOFError(f"{self.name} ends early")
            left -= len(data)
            yield data
        if self.stream.read(1):
            raise ValueError(f"{self.name} goes on behind its numbers")

    def read(self) -> NDArray[Any]:
        """Return the array."""
        numbers = np.empty(self.size, np.uint8)
        start = 0
        for data in self.chunks():
            numbers[start : start + len(data)] = np.frombuffer(data, np.uint8)
            start += len(data)
        order: Literal["F", "C"] = "F" if self.fortran else "C"
        return numbers.view(self.dtype).reshape(self.shape, order=order)


def read_arrays(
    file: Path,
    *names: str,
    error: Callable[[str], Exception],
    optional: Collection[str] = (),
    like: Like | None = None,
    content: bytes | None = None,
    most_bytes: int | None = None,
    what: str = _PLAIN,
    remedy: str = "",
) -> dict[str, NDArray[Any]]:
    """Return arrays of an npz by name, each as it was written.

    Args:
        file: where it lies.
        names: arrays that must be there; others are left alone.
        error: makes what is raised of its message.
        optional: arrays that are read if they are there.
        like: dtype and shape that each array must have, where there may be no other array.
        content: the file's bytes, where they were read before; `file` then only names them.
        most_bytes: that all arrays may take; by default what the file can hold.
        what: is expected, for the message.
        remedy: what the reader of the message can do about it.

    Raises:
        error: no such file, another kind of file, an array missing, of another dtype or shape or
            of Python objects, too many bytes, or damage of any kind.
    """
    refuse = _refusal(file, error, what, remedy)
    with _opened(file, content, refuse) as (archive, whole):
        there = [name.removesuffix(".npy") for name in archive.namelist()]
        if like is not None and sorted(there) != sorted(like):
            raise refuse("holds others")
        missing = sorted(set(names) - set(there))
        if missing:
            raise error(
                f"expected arrays {_listed(sorted(names))} in {file}, {_listed(missing)} missing: "
                f"it has {', '.join(there) or 'none'}{remedy and f': {remedy}'}"
            )
        wanted = [*names, *(name for name in optional if name in there), *(like or ())]
        members = [_member(archive, name, whole, refuse) for name in wanted]
        for member in members:
            _check_like(member, like, file, error)
        total = sum(member.size for member in members)
        if most_bytes is not None and total > most_bytes:
            raise refuse(f"unpacks to {total} bytes, more than {most_bytes}")
        for member in members:
            member.check_size(whole)
        try:
            return {member.name: member.read() for member in members}
        except MemoryError as problem:
            raise refuse(f"takes {total} bytes, more than there is memory") from problem


def find_place(
    file: Path,
    name: str,
    *,
    error: Callable[[str], Exception],
    least_bytes: int = 0,
    what: str = _PLAIN,
    remedy: str = "",
) -> Place | None:
    """Return where an array of an npz lies as it lies in memory, its sum checked.

    None means that it does not: it is not there, compressed, not in C order, or takes fewer bytes
    than asked for. Arguments and errors are those of `read_arrays`.
    """
    refuse = _refusal(file, error, what, remedy)
    with _opened(file, None, refuse) as (archive, whole):
        if f"{name}.npy" not in archive.namelist():
            return None
        member = _member(archive, name, whole, refuse)
        if member.info.compress_type != zipfile.ZIP_STORED or member.fortran:
            return None
        if member.size < least_bytes:
            return None
        member.check_size(whole)
        header = member.stream.tell()
        for _ in member.chunks():
            pass
        with file.open("rb") as stream:
            stream.seek(member.info.header_offset + _LENGTHS)
            lengths = sum(struct.unpack("<HH", stream.read(4)))
        start = member.info.header_offset + _FIXED + lengths
        return Place(file, start + header, member.shape, member.dtype)


def write_arrays(
    stream: BinaryIO, arrays: Mapping[str, NDArray[Any]], *, compress: bool = True
) -> None:
    """Write arrays as an npz, as NumPy does.

    NumPy's own `savez` can be told to refuse Python objects from 2.2 on only; before, it stores
    `allow_pickle` as one more array.

    Raises:
        ValueError: an array holds Python objects.
    """
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(values), allow_pickle=False)


def _refusal(
    file: Path, error: Callable[[str], Exception], what: str, remedy: str
) -> Callable[[str], Exception]:
    return lambda fact: error(f"expected {what}, {file} {fact}{remedy and f': {remedy}'}")


@contextmanager
def _opened(
    file: Path, content: bytes | None, refuse: Callable[[str], Exception]
) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """Give the archive and its size; what goes wrong with it inside the block is refused."""
    try:
        if content is None and not file.is_file():
            kind = "a folder" if file.is_dir() else "no file" if file.exists() else "not there"
            raise refuse(f"is {kind}")
        with io.BytesIO(content) if content is not None else file.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise refuse("is not one")
            whole = stream.seek(0, io.SEEK_END)
            with zipfile.ZipFile(stream) as archive:
                _check_list(archive, stream, whole)
                yield archive, whole
    except OSError as problem:
        raise refuse(f"can't be read ({problem.strerror or _first_line(problem)})") from problem
    except DAMAGE as problem:
        raise refuse(f"is damaged ({_first_line(problem)})") from problem


def _check_list(archive: zipfile.ZipFile, stream: BinaryIO, whole: int) -> None:
    """Raise BadZipFile where damage to zip's list, which has no sum, hides or renames a member."""
    members = archive.infolist()
    stream.seek(max(0, whole - _LONGEST_END))
    end = stream.read()
    count = int.from_bytes(end[end.rfind(_END) + _COUNT :][:2], "little")
    if count not in {len(members), _COUNTED_ELSEWHERE}:
        raise zipfile.BadZipFile(f"{count} members are promised, {len(members)} are listed")
    for info in members:
        if not info.flag_bits & _ENCRYPTED and info.compress_type in _METHODS:
            archive.open(info).close()  # which holds its name against that in its own header


def _first_line(problem: Exception) -> str:
    return next(iter(str(problem).splitlines()), "") or type(problem).__name__


def _member(
    archive: zipfile.ZipFile, name: str, whole: int, refuse: Callable[[str], Exception]
) -> _Member:
    info = archive.getinfo(f"{name}.npy")
    if info.flag_bits & _ENCRYPTED:
        raise refuse(f"holds {name} encrypted")
    if info.compress_type not in _METHODS:
        raise refuse(f"holds {name} compressed by method {info.compress_type}, not by deflate")
    if info.header_offset + info.compress_size > whole:
        raise EOFError(f"{name} goes on behind the end of the file")
    stream = archive.open(info)
    version = np.lib.format.read_magic(stream)
    if version not in _READERS:
        raise refuse(f"holds {name} in version {version} of NumPy's format")
    shape, fortran, dtype = _READERS[version](stream)
    if dtype.hasobject:
        raise refuse(f"holds Python objects in {name}")
    return _Member(name, info, stream, shape, fortran and len(shape) > 1, dtype)


def _check_like(
    member: _Member, like: Like | None, file: Path, error: Callable[[str], Exception]
) -> None:
    if like is None or (member.dtype, member.shape) == like[member.name]:
        return
    dtype, shape = like[member.name]
    got = f"{member.dtype} {member.shape}"
    raise error(f"expected {member.name} of {dtype} {shape} in {file}, got {got}")


def _listed(names: Collection[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
