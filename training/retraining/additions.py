"""What retraining adds to a harvest: attacked images, labelled captures, or an attack to run.

Each becomes shards under `added/` in the work folder, split by where an image came from, so that no
source is fitted on in one retraining and judged by in the next. N images, D rates, K classes.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.arrays import read_arrays
from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.captures import INDEX, Labelled, Shard, labelled, read_shard
from reluguard.detector.errors import CapturesError, ImageError
from reluguard.detector.images import Images, InputSpec
from reluguard.detector.runtime import Reader
from reluguard.training.attacks import attack_named
from reluguard.training.data.case import read_rates
from reluguard.training.data.classes import Classes, Known, with_classes
from reluguard.training.data.dataset import Dataset, load_data
from reluguard.training.data.folder import is_shown
from reluguard.training.data.pictures import Pictures, find_pictures
from reluguard.training.data.reading import Reading
from reluguard.training.errors import DataError
from reluguard.training.harvest.harvest import harvest_told
from reluguard.training.harvest.orders import Orders, plan_jobs
from reluguard.training.harvest.readings import Kind, Readings
from reluguard.training.harvest.workspace import ADDED, Again
from reluguard.training.progress import Progress
from reluguard.training.provenance import Added
from reluguard.training.retraining.kept import Kept

__all__ = [
    "FEWEST_CLEAN",
    "MOST_PER_SOURCE",
    "Fresh",
    "read_attacked",
    "read_captured",
    "run_attack",
    "store",
]

HELD_OUT = 0.3
FEWEST_CLEAN = 20  # labelled clean images below which they neither teach nor judge
SPLITS = 1000  # an id's remainder says whether it is held out
HASHED = 1 << 62  # ids of images from outside: apart from the row numbers of the data set
LABELLED_CLEAN = "labelled-clean"
MOST_PER_SOURCE = 250
LOOSE = 64  # pictures that are decoded at a time
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """Readings of new images: rates float16 (N, D), logits (N, K), true classes and ids (N,).

    `dropped` counts what was left out, by reason. `again` is what a second look read of them.
    `is_captured` tells what people labelled from what was attacked on purpose, `is_loose` pictures
    whose true class nobody said.
    """

    name: str
    kind: Kind
    rates: NDArray[np.float16]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    source: str
    dropped: Mapping[str, int] = field(default_factory=dict)
    again: Again | None = None
    is_captured: bool = False
    is_loose: bool = False

    @property
    def seen_twice(self) -> int:
        """How many of them a second look read too."""
        return 0 if self.again is None else int(self.again.seen.sum())

    def readings(self) -> Readings:
        """Return the same as a group of a harvest."""
        return Readings(
            name=self.name,
            kind=self.kind,
            rates=self.rates,
            logits=self.logits,
            sources=self.ids,
            labels=self.labels,
        )


def read_attacked(
    path: Path,
    reader: Reader,
    known: Known | None = None,
    classes: Classes | None = None,
    *,
    artifact: GuardArtifact | None = None,
    again: Reader | None = None,
) -> list[Fresh]:
    """Return the readings of attacked images: one group per file, named after it.

    Loose pictures have no labels: each is taken to fool the model, and its true class to be what
    the guard's own probe holds likeliest besides the answer, as of captures.

    Args:
        path: an npz with `images` uint8 (N, H, W, C), `labels` int64 (N,), the true classes, and
            optionally `sources` int64 (N,), what image each was made from; a folder of such; a
            folder with one folder of images per true class; or a folder of pictures, a picture or
            a pattern of such, all of them attacked.
        reader: of the model.
        known: what the guard knows of classes.
        classes: which class each folder of images is; by default what the guard knows.
        artifact: the guard, without which loose pictures are refused.
        again: reads a second look.

    Raises:
        DataError: no such file, a name that can't be used, no telling which class a folder is, or
            no image that fools the model.
    """
    if artifact is not None and (loose := find_pictures(str(path))) is not None:
        return [_read_loose(path, loose, reader, artifact, again)]
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if files:
        return [_read_file(file, reader, again) for file in files]
    if not any(entry.is_dir() and is_shown(entry.name) for entry in path.iterdir()):
        raise DataError(
            f"expected .npz files of attacked images, pictures, a folder of them per class, or "
            f"{INDEX}, in {path}"
        )
    data = load_data(str(path), Reading.of(reader.spec))
    rates, logits = read_rates(reader, data.images)
    data = with_classes(data, None, logits.shape[1], classes, known)
    return [_fooling(path, data, rates, logits, None, again)]


def _read_loose(
    path: Path,
    files: list[Path],
    reader: Reader,
    artifact: GuardArtifact,
    again: Reader | None,
) -> Fresh:
    """Return the readings of pictures without labels, all of which are taken to be attacks."""
    pictures = Pictures(files, Reading.of(reader.spec))
    images: Images = np.concatenate(list(pictures.batches(LOOSE)))
    rates, logits = read_rates(reader, images)
    return Fresh(
        name=_checked_name(path.name if path.is_dir() else files[0].resolve().parent.name),
        kind="attack",
        rates=rates.astype(np.float16),
        logits=logits,
        labels=_likely_class(artifact, rates, logits, "attack"),
        ids=_hashed([image.tobytes() for image in images]),
        source=str(path),
        again=_read_again(again, images),
        is_loose=True,
    )


def _read_file(file: Path, reader: Reader, again: Reader | None) -> Fresh:
    spec = reader.spec
    data = load_data(str(file))
    if data.images.shape[1:] != (spec.height, spec.width, spec.channels):
        expected = (spec.height, spec.width, spec.channels)
        raise DataError(f"expected images {expected} in {file}, got {data.images.shape[1:]}")
    sources = read_arrays(file, error=DataError, optional=("sources",)).get("sources")
    if sources is not None and (
        sources.shape != data.labels.shape or sources.dtype.kind not in "iu"
    ):
        got = f"{sources.dtype} {sources.shape}"
        raise DataError(f"expected one source per image in {file}, a whole number, got {got}")
    rates, logits = reader.read(data.images)
    if data.labels.max() >= logits.shape[1]:
        raise DataError(f"expected labels below {logits.shape[1]} in {file}")
    return _fooling(file, data, rates, logits, sources, again)


def _fooling(
    file: Path,
    data: Dataset,
    rates: NDArray[np.float32],
    logits: NDArray[np.float32],
    sources: NDArray[Any] | None,
    again: Reader | None,
) -> Fresh:
    """Return the rows that the model answers wrong."""
    fools = logits.argmax(axis=1) != data.labels
    if not fools.any():
        raise DataError(f"the model answers every image of {file} right: none is an attack")
    texts = (
        [image.tobytes() for image in data.images]
        if sources is None
        else [f"{file.stem}/{int(source)}".encode() for source in sources]
    )
    return Fresh(
        name=_checked_name(file.stem),
        kind="attack",
        rates=rates[fools].astype(np.float16),
        logits=logits[fools],
        labels=data.labels[fools],
        ids=_hashed(texts)[fools],
        source=str(file),
        dropped={"answered right": int((~fools).sum())},
        again=_read_again(again, data.images[fools]),
    )


def _read_again(reader: Reader | None, images: Images) -> Again | None:
    """Return what a second look reads of images."""
    if reader is None:
        return None
    rates, logits = read_rates(reader, images)
    return Again(rates=rates.astype(np.float16), logits=logits, seen=np.ones(len(images), np.bool_))


def read_captured(
    folder: Path,
    artifact: GuardArtifact,
    *,
    most_per_source: int = MOST_PER_SOURCE,
    again: Reader | None = None,
) -> list[Fresh]:
    """Return what was captured from production and labelled since, one group per label.

    Rates suffice, no image is needed; a second look reads those that were captured with theirs. The
    true class is not known: of an image labelled clean it is taken to be the model's answer, of an
    attack what the guard's own probe holds likeliest besides. An image that came again counts once:
    it must not be both fitted on and judged by.

    Args:
        folder: of the captures.
        artifact: the guard whose taps they must be of.
        most_per_source: rows of one caller under one label, at most: whoever sends most does not
            decide what the next guard is.
        again: reads a second look.

    Raises:
        DataError: the index is locked, damaged or of another model, a label is none, or nothing is
            left.
    """
    try:
        rows = labelled(folder)
    except CapturesError as error:
        raise DataError(str(error)) from error
    if not rows:
        raise DataError(f"expected labelled captures in {folder / INDEX}, none has a label")
    model = artifact.manifest.model_sha256
    foreign = {row.model for row in rows} - {model}
    if foreign:
        raise DataError(
            f"expected captures of the model {model[:16]}, some are of {min(foreign)[:16]}"
        )
    groups = []
    for label in sorted({row.label for row in rows}):
        ours = [row for row in rows if row.label == label]
        kept = _capped(ours, most_per_source)
        found = _labelled(folder, artifact, label, kept, again)
        over = {"over its caller's share": len(ours) - len(kept)}
        groups.append(replace(found, dropped={**found.dropped, **over}))
    return groups


def _capped(rows: Sequence[Labelled], most: int) -> list[Labelled]:
    """Return at most so many rows of each source, whichever by hash of their ids, in order."""
    by_source: dict[str, list[Labelled]] = {}
    for row in rows:
        by_source.setdefault(row.source, []).append(row)
    kept = [
        row
        for own in by_source.values()
        for row in sorted(own, key=lambda row: hashlib.sha256(row.id.encode()).digest())[:most]
    ]
    return sorted(kept, key=lambda row: row.id)


def _labelled(
    folder: Path,
    artifact: GuardArtifact,
    label: str,
    rows: Sequence[Labelled],
    again: Reader | None,
) -> Fresh:
    kind: Kind = "benign" if label == "clean" else "attack"
    if kind == "attack" and not label.startswith("attack:"):
        raise DataError(f"expected the label clean or attack:NAME, got {label[:64]!r}")
    name = LABELLED_CLEAN if kind == "benign" else _checked_name(label.removeprefix("attack:"))
    expected = (
        sum(tap.rates for tap in artifact.manifest.taps),
        artifact.head.features.classes,
    )
    shards: dict[str, Shard | None] = {}
    rates, logits, ids = [], [], []
    taken: list[tuple[Shard, int]] = []
    dropped = {"shard damaged": 0, "other taps": 0, "seen before": 0}
    seen: set[bytes] = set()
    for one in rows:
        row = one.row
        if one.shard not in shards:
            shards[one.shard] = _read_shard(folder, one.shard)
        found = shards[one.shard]
        if found is None or not 0 <= row < len(found.rates):
            dropped["shard damaged"] += 1
        elif found.rates.shape[1] != expected[0] or found.logits.shape[1] != (
            expected[1] or found.logits.shape[1]
        ):
            dropped["other taps"] += 1
        elif (key := found.rates[row].astype(np.float16).tobytes()) in seen:
            dropped["seen before"] += 1
        else:
            seen.add(key)
            rates.append(found.rates[row])
            logits.append(found.logits[row])
            ids.append(one.id.encode())
            taken.append((found, row))
    if not ids:
        raise DataError(f"no capture labelled {label!r} can be used: {dropped}")
    read, answered = np.stack(rates), np.stack(logits).astype(np.float32)
    return Fresh(
        name=name,
        kind=kind,
        rates=read.astype(np.float16),
        logits=answered,
        labels=_likely_class(artifact, read, answered, kind),
        ids=_together(ids),
        source=str(folder),
        dropped=dropped,
        again=None if again is None else _captured_again(again, taken),
        is_captured=True,
    )


def _captured_again(reader: Reader, taken: Sequence[tuple[Shard, int]]) -> Again | None:
    """Return what a second look reads of captured rows, None where none came with its image."""
    spec = reader.spec
    found = [_raw_tensor(spec, shard, row) for shard, row in taken]
    seen = np.array([one is not None for one in found])
    if not seen.any():
        return None
    rates: NDArray[Any] = np.zeros((0, 0))
    logits = np.zeros((0, 0), np.float32)
    for i, one in enumerate(found):
        if one is None:
            continue
        read, answered = reader.read_tensor(one)
        if not rates.size:
            rates = np.zeros((len(taken), read.shape[1]), np.float16)
            logits = np.zeros((len(taken), answered.shape[1]), np.float32)
        rates[i], logits[i] = read[0], answered[0]
    return Again(rates=rates, logits=logits, seen=seen)


def _raw_tensor(spec: InputSpec, shard: Shard, row: int) -> NDArray[Any] | None:
    """Return a captured row as the model's own input, None where it has none that fits."""
    if shard.raw is None:
        return None
    one = shard.raw[row : row + 1]
    try:
        tensor = spec.to_tensor(one) if shard.kind == "images" else one
        spec.check_tensor(tensor)
    except ImageError:
        return None
    return tensor


def _read_shard(folder: Path, name: str) -> Shard | None:
    try:
        shard = read_shard(folder, name)
    except CapturesError:
        return None
    return shard if np.isfinite(shard.logits).all() else None


def _likely_class(
    artifact: GuardArtifact, rates: NDArray[Any], logits: NDArray[np.float32], kind: Kind
) -> NDArray[np.int64]:
    answer: NDArray[np.int64] = logits.argmax(axis=1)
    features = artifact.head.features
    if kind != "attack" or not features.probes:
        return answer
    scores = features.probe_scores(rates)[:, 0]  # the first probe reads all taps
    scores[np.arange(len(scores)), answer] = -np.inf
    likely: NDArray[np.int64] = scores.argmax(axis=1)
    return likely


def run_attack(
    text: str,
    kept: Kept,
    orders: Orders,
    splits: Mapping[str, NDArray[np.int64]],
    *,
    weight: float,
    progress: Progress | None = None,
) -> Added:
    """Attack source images of the original data set; what is on disk is not made again.

    Args:
        text: the attack's name, or module:Class.
        kept: the harvest it joins.
        orders: of the harvest; the attack is put in.
        splits: the source images of "fit" and "test".
        weight: of the new group.
        progress: told of a stage of the attack's name.

    Raises:
        AttackError: there is no such attack, or it lacks what it needs.
        DataError: it never succeeded.
    """
    attack = attack_named(text)
    key = f"{attack!r} {orders.seed} {[len(rows) for rows in splits.values()]}"
    slug = f"{ADDED}{attack.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    jobs = plan_jobs(slug, "attack", splits)
    harvest_told(
        jobs,
        replace(orders, changes={slug: attack}),
        workers=1,
        progress=progress or Progress(),
        title=text,
    )
    counts = {
        split: len(kept.workspace.readings([job for job in jobs if job.split == split]))
        for split in splits
    }
    if not all(counts.values()):
        raise DataError(f"{attack.name} succeeds too seldom on this model to learn from: {counts}")
    return Added(
        name=_free_name(attack.name, kept),
        kind="attack",
        slug=slug,
        weight=weight,
        fit=counts["fit"],
        test=counts["test"],
        source=repr(attack),
        dropped={"failed": sum(map(len, splits.values())) - sum(counts.values())},
    )


def store(fresh: Fresh, kept: Kept, *, weight: float, per_row: float = math.inf) -> Added:
    """Write new readings into the harvest and return what was added.

    An image is held out or not by its id alone, so it stays on its side from one retraining to the
    next; what an earlier one added already is left out.

    Args:
        fresh: the readings.
        kept: the harvest they join.
        weight: of the new group, at most.
        per_row: of each row it is fitted on, at most.

    Raises:
        DataError: nothing new, or too few to both fit and judge.
    """
    known = [job.sources for made in kept.jobs.values() for job in made]
    old = np.isin(fresh.ids, np.concatenate(known))
    held = fresh.ids % SPLITS < SPLITS * HELD_OUT
    parts = {"fit": np.flatnonzero(~held & ~old), "test": np.flatnonzero(held & ~old)}
    if not all(map(len, parts.values())):
        raise DataError(
            f"expected new images of {fresh.name} to fit on and to hold out, got "
            f"{len(parts['fit'])} and {len(parts['test'])}; {int(old.sum())} were there already"
            f"{_why_one_side(fresh, ~old)}"
        )
    digest = hashlib.sha256(np.sort(fresh.ids).tobytes()).hexdigest()[:8]
    slug = f"{ADDED}{fresh.name}-{digest}"
    for split, rows in parts.items():
        again = None if fresh.again is None else fresh.again.rows(rows)
        kept.workspace.add(slug, split, fresh.readings().rows(rows), again)
    return Added(
        name=_free_name(fresh.name, kept),
        kind=fresh.kind,
        slug=slug,
        weight=min(weight, per_row * len(parts["fit"])),
        fit=len(parts["fit"]),
        test=len(parts["test"]),
        source=fresh.source,
        dropped={**fresh.dropped, "there already": int(old.sum())},
    )


def _why_one_side(fresh: Fresh, new: NDArray[np.bool_]) -> str:
    """Return why images that are new all fell to one side, and what to do about it."""
    count = int(new.sum())
    if not count:
        return ""
    if fresh.is_captured and len(np.unique(fresh.ids[new] % SPLITS)) == 1:
        return (
            f": images of one request stay together, and the {count} new ones are of one; label "
            "captures of more requests"
        )
    return f": {HELD_OUT:.0%} of images are held out, chosen by chance; give more of them"


def _hashed(texts: Sequence[bytes]) -> NDArray[np.int64]:
    numbers = [int.from_bytes(hashlib.sha256(text).digest()[:7]) for text in texts]
    return np.array(numbers, np.int64) | HASHED


def _together(ids: Sequence[bytes]) -> NDArray[np.int64]:
    """Return a number per captured image, held out or not together with its request.

    Images of one request may all but be copies; an id is REQUEST:ROW.
    """
    requests = _hashed([name.rpartition(b":")[0] or name for name in ids])
    return _hashed(ids) // SPLITS * SPLITS + requests % SPLITS


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise DataError(f"expected an attack's name of letters, digits, . _ and -, got {name!r}")
    return name


def _free_name(name: str, kept: Kept) -> str:
    taken, number = name, 1
    while taken in kept.jobs:
        number += 1
        taken = f"{name}-{number}"
    return taken
