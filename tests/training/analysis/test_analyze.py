import json
import re
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from reluguard.detector.errors import SettingsError
from reluguard.training.analysis.material import choose_rows
from reluguard.training.analysis.result import Analysis
from reluguard.training.analyze import analyze
from reluguard.training.data.dataset import Dataset, load_data, save_dataset
from reluguard.training.errors import AnalysisError, LabelError, OutOfMemoryError, TwinError
from reluguard.training.progress import Step
from tests.training.following import assert_told_to_the_end

LITTLE: dict[str, Any] = {
    "limit": 180,
    "pairwise": 90,
    "attacks": ("pgd-l1-12", "fgsm-linf-8", "fgsm-linf-1"),
    "seed": 1,
}


@pytest.fixture(scope="module")
def told() -> list[Step]:
    """What a callback is told of the analysis."""
    return []


@pytest.fixture(scope="module")
def folder(
    lively_model: Path,
    lively_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
    told: list[Step],
) -> Path:
    """The outcome of one analysis of the tiny network, against itself as the other."""
    out = tmp_path_factory.mktemp("analysis")
    analyze(
        lively_model,
        lively_data,
        out=out,
        other=lively_model,
        progress=told.append,
        **LITTLE,
    )
    return out


PAGES = (
    "report.html",
    "report/similarity-of-bits.html",
    "report/fiedler-cuts.html",
    "report/discriminating-bits.html",
    "report/self-organizing-maps.html",
    "report/graphs-and-cka.html",
    "report/consistency.html",
)


def test_report_figures_arrays_and_nothing_else(folder: Path) -> None:
    """All are there, and no working file is left."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert names == sorted(["analysis.json", "arrays.npz", *PAGES])


def test_what_is_opened_first_is_small(folder: Path) -> None:
    """The pictures of every tap are on the chapters' pages."""
    assert (folder / "report.html").stat().st_size < 100_000


@pytest.mark.parametrize("name", PAGES)
def test_the_report_fetches_nothing_and_is_well_formed(folder: Path, name: str) -> None:
    """Tags close in order, there is no script, and no address outside the report."""
    text = (folder / name).read_text()
    links = re.findall(r'(?:href|src)="([^"]*)"', text)
    assert links
    ours = [link for link in links if not link.startswith(("#", "data:"))]
    assert ours
    assert all(((folder / name).parent / link).is_file() for link in ours)
    assert "<script" not in text
    assert not re.search(r"url\((?!#)", text)
    open_tags: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            del attrs
            if tag not in {"meta", "path", "use", "rect", "image", "line"}:
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag not in {"path", "use", "rect", "image", "line"}:
                assert open_tags.pop() == tag

    Checker().feed(text)
    assert open_tags == []


def test_figures_are_plain_and_claims_are_measured(folder: Path) -> None:
    """The JSON is strict, its rates are shares, and what needs training says so."""
    found = json.loads((folder / "analysis.json").read_text())
    assert Analysis.from_json(found).to_json() == found
    assert found["accuracy"]["value"] == 1
    assert len(found["taps"]) == 2
    for tap in found["taps"]:
        assert 0.5 <= tap["fiedler_accuracy"]["value"] <= 1
    told = {claim["holds"] for claim in found["claims"]}
    assert told <= {"holds", "fails", "can't be told here"}
    assert all(c["holds"] == "can't be told here" for c in found["claims"] if c["ours"] is None)
    assert all(c["why"] and c["setup"] and c["measure"] for c in found["claims"])


def test_every_paper_has_its_lines_and_what_nobody_claimed_is_apart(folder: Path) -> None:
    """Five papers; attacks and classifiers of ours stand beside them, with no verdict."""
    found = json.loads((folder / "analysis.json").read_text())
    numbers = {claim["paper"].split()[-1] for claim in found["claims"]}
    assert numbers == {"2305.01808", "2211.13305", "2205.10952", "2111.11165", "1708.05493"}
    assert not any("pgd" in claim["claim"] for claim in found["claims"])
    assert any("pgd-l1-12" in line["measure"] for line in found["beside"])
    assert all("holds" not in line for line in found["beside"])
    page = (folder / "report.html").read_text()
    assert all(line["why"] in unescape(page) for line in found["claims"])


def test_simple_classifiers_are_asked_of_every_tap_and_of_noise(folder: Path) -> None:
    """Each attack has its own, in shares of the same images; claims quote them."""
    found = json.loads((folder / "analysis.json").read_text())
    assert [one["attack"] for one in found["classifiers"]] == list(LITTLE["attacks"])
    for one in found["classifiers"]:
        assert len(one["per_tap"]) == len(found["taps"])
        for shares in (*one["all_taps"].values(), *one["per_tap"]):
            assert list(shares) == ["clean", "attacked", "noise"]
            assert all(0 <= share * one["tested"] <= one["tested"] for share in shares.values())
    fgsm = next(one for one in found["classifiers"] if one["attack"] == "fgsm-linf-8")
    shares = fgsm["all_taps"]["logistic regression on 2,000 bits"]
    line = next(c for c in found["claims"] if c["claim"].endswith("(fgsm-linf-8, all taps)"))
    assert line["ours"]["value"] == pytest.approx((shares["attacked"] + 1 - shares["clean"]) / 2)
    assert f"calls {shares['noise']:.0%} of images with harmless noise" in line["why"]


def test_arrays_obey_their_laws(folder: Path) -> None:
    """Similarities are largest on the diagonal, RDMs are symmetric, a network matches itself."""
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        for name in ("graphs/lsim", "graphs/lsim_near", "graphs/cka", "similarity/layer_spearman"):
            table = arrays[name]
            assert np.allclose(np.diagonal(table), 1, atol=1e-3), name
            assert np.allclose(table, table.T, atol=1e-5), name
        rdms = arrays["similarity/rdm_clean"]
        assert (rdms == rdms.transpose(0, 2, 1)).all()
        assert np.allclose(arrays["graphs/other_cka"], arrays["graphs/cka"], atol=1e-4)
        flips = arrays["consistency/flips"]
        assert np.nanmax(flips) <= 1
        assert np.nanmin(flips) >= 0


def test_every_step_is_done_to_its_end(folder: Path, told: list[Step]) -> None:
    """Each announced step comes, counts exactly what it announced, and the last ends the whole."""
    assert folder.is_dir()
    titles = ("read bits", *LITTLE["attacks"], "distances", "studies", "pages")
    assert_told_to_the_end(told, *titles)
    assert {step.title for step in told if step.share == 1} == set(titles)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_arrays(
    folder: Path, lively_model: Path, lively_data: Path, tmp_path: Path
) -> None:
    """Nothing depends on anything but the seed."""
    analyze(lively_model, lively_data, out=tmp_path, other=lively_model, **LITTLE)
    with np.load(folder / "arrays.npz") as a, np.load(tmp_path / "arrays.npz") as b:
        assert a.files == b.files
        for name in a.files:
            assert np.allclose(a[name], b[name], equal_nan=True), name


@pytest.mark.slow
def test_papers_trains_what_claims_need_and_keeps_it(
    lively_model: Path, lively_data: Path, tmp_path: Path
) -> None:
    """Ten networks stay on disk and are not trained again, and no claim lacks one."""
    settings = LITTLE | {"limit": 200, "pairwise": 60, "papers": True, "steps": 2}
    found = analyze(lively_model, lively_data, out=tmp_path, **settings)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "networks").iterdir()}
    assert len(kept) == 10
    assert found.seeds is not None
    assert list(found.seeds) == ["plain", "residual"]
    assert found.hardening is not None
    assert list(found.hardening) == ["published", "normalised"]
    assert not any("--papers" in line["why"] for line in found.claims)
    assert sum("small residual networks" in line["measure"] for line in found.claims) == 5
    again = analyze(lively_model, lively_data, out=tmp_path, **settings)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "networks").iterdir()} == kept
    assert again.seeds == found.seeds


def test_rows_are_balanced_and_in_order() -> None:
    """The pairwise images hold as many of each of the most frequent classes."""
    labels = np.repeat([4, 1, 9], [50, 30, 2])
    rows = choose_rows(labels, 20, classes=2)
    assert (labels[rows] == np.repeat([1, 4], 10)).all()


def test_one_class_is_refused(lively_model: Path, lively_data: Path, tmp_path: Path) -> None:
    """Two classes can't be asked of a one-class set."""
    data = load_data(str(lively_data))
    file = tmp_path / "one.npz"
    save_dataset(data.take(data.labels == data.labels[0]), file)
    with pytest.raises(LabelError, match=r"2 or more classes, got 1"):
        analyze(lively_model, file, out=tmp_path / "out", **LITTLE)


def test_too_little_memory_is_told_before_work(
    lively_model: Path, lively_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would not fit is refused before anything is written."""
    monkeypatch.setattr("reluguard.training.analysis.checks.free_bytes", lambda: 2**20)
    with pytest.raises(OutOfMemoryError, match="an analysis of 180 images, 90 of them pairwise"):
        analyze(lively_model, lively_data, out=tmp_path / "out", **LITTLE)
    assert not (tmp_path / "out").exists()


def test_a_dead_tap_is_named(
    make_network: Callable[..., onnx.ModelProto], lively_data: Path, tmp_path: Path
) -> None:
    """A layer that says the same of every image stops the analysis with its name."""
    model = make_network(classes=3, seed=12)
    bias = next(item for item in model.graph.initializer if item.name == "b2")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(12, -1e6, np.float32), "b2"))
    onnx.save(model, tmp_path / "dead.onnx")
    with pytest.raises(AnalysisError, match="the tap r2 is constant: it says the same of all 180"):
        analyze(tmp_path / "dead.onnx", lively_data, out=tmp_path / "out", **LITTLE)


def test_settings_and_needs_are_checked(
    lively_model: Path, lively_data: Path, tmp_path: Path
) -> None:
    """Senseless settings, attacks without what they need and wrong names are refused."""
    with pytest.raises(SettingsError, match="20 or more images, got 5 and 1000"):
        analyze(lively_model, lively_data, out=tmp_path / "out", limit=5)
    with pytest.raises(SettingsError, match="one or more attacks"):
        analyze(lively_model, lively_data, out=tmp_path / "out", attacks=())
    with pytest.raises(SettingsError, match="need another model: give `other`"):
        analyze(
            lively_model,
            lively_data,
            out=tmp_path / "out",
            **LITTLE | {"attacks": ("ensemble-targeted",)},
        )
    with pytest.raises(SettingsError, match="expected 3 class names, got 1"):
        analyze(lively_model, lively_data, out=tmp_path / "out", **LITTLE | {"class_names": ("a",)})
    with pytest.raises(TwinError):
        analyze(lively_model, lively_data, out=tmp_path / "out", **LITTLE | {"twin": "nonsense"})


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fiedler_target_on_resnet20(shared: Path, tmp_path: Path) -> None:
    """At ResNet-20's last ReLU two classes are told apart at .98 or better, mean over 45 pairs."""
    data = load_data(str(shared / "data/cifar10/heldout.npz"))
    part = Dataset(images=data.images[:2000], labels=data.labels[:2000], source="held out")
    save_dataset(part, tmp_path / "part.npz")
    found = analyze(
        shared / "models/resnet20-cifar10.onnx",
        tmp_path / "part.npz",
        out=tmp_path / "out",
        attacks=["fgsm-linf-8"],
    )
    assert found.taps[-1].fiedler_accuracy.value >= 0.98
