"""The exercise: a guard in production meets an attack it has never seen, and learns it.

    python benchmarks/new_attack.py                      # digits, adversarial patches
    python benchmarks/new_attack.py --model M.onnx --data D.npz --attack cw-l2 --attack patch-6

For each attack X: fit a guard without X and its like; run `reluguard serve` with capture; send
clean traffic, then traffic with 2 % of X, by gRPC; watch for the alarm; label the 200 most
suspicious captures through Feedback; `reluguard retrain`; put the challenger in shadow; promote it
under load; measure on images that no step has seen; roll back under load. Then once more with a
third of the labels wrong. Exit code 1 if the gate refuses the honest labels or a request fails.

Commit db3a4bb, X and its like left out of the recipe, 2 % of 10,000 requests, all from one caller.
ResNet-20, CIFAR-10's test images, default recipe, 899 fresh clean images; share of fresh X detected
at 5 % false positives: before, after, and by a guard that knew X and its like from the start; what
old attacks lose of AUROC on average and at worst; realised false positives before and after:

    patch-6         .32  .79  (.66)   .003  .006   .070  .068
    patch-6, seed 1 .34  .72  (.72)   .002  .004   .044  .039
    cw-l2           .59  .73  (.72)   .002  .005   .059  .062
    square-linf-8   .47  .90  (.85)  -.001  .002   .051  .056

Each time: alarm after 2,000 requests, 34 to 36 of them attacked, none on calm traffic; 200 labels,
196 to 200 of attacked images; retrained in 16 to 25 s; the gate passes; none of 2,661 requests
under promotion and rollback failed. CW is short of the goal, doubled or .90: so is the guard that
knew it.

Digits, 88 of 200 labels of attacked images: patch-6 .17 to .99, cw-l2 .89 to .98; old attacks lose
.003 at worst; the alarm came after 7,500 and 3,500 requests. Up to commit f93bf93, when units were
stronger, on digits of other seeds: patch-6 .01 to .80 and .01 to .47, cw-l2 .87 to .97 and .86 to
.95, with seed 1 no alarm but "recalibrate", on calm traffic already, with seed 2 none for patches.
Square-linf-8 is detected already there and raises none; of six labelled images of it retrain says
"label more".

With a third of the labels wrong the gate stops each of these; promoted all the same, the guards of
ResNet-20 would detect .78, .72, .70 and .90, those of digits .62 and .94.
"""

import argparse
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script's own folder is on the path, its package is not

from benchmarks.exercise.case import (  # noqa: E402 - needs the line above
    Parts,
    attack_all,
    digits_files,
    fit_without,
    split_data,
    without,
)
from benchmarks.exercise.production import (  # noqa: E402 - as above
    BOSS,
    Traffic,
    as_boss,
    drift_of,
    live_guard,
    loaded,
    send,
    write_tokens,
)
from benchmarks.faults.pair import Pair  # noqa: E402 - as above
from benchmarks.faults.process import Process, served  # noqa: E402 - as above
from reluguard.detector.artifact import read_guard, write_file  # noqa: E402 - as above
from reluguard.detector.captures import INDEX  # noqa: E402 - as above
from reluguard.detector.runtime import Guard  # noqa: E402 - as above
from reluguard.detector.shelf.shelf import promote, rollback, shadow  # noqa: E402 - as above
from reluguard.service.captures.label import list_captures, set_label  # noqa: E402 - as above
from reluguard.service.client.client import Client  # noqa: E402 - as above
from reluguard.service.protocols.pb import reluguard_v1 as pb  # noqa: E402 - as above
from reluguard.training.attacks import Attack, attack_named  # noqa: E402 - as above
from reluguard.training.data.dataset import Dataset  # noqa: E402 - as above
from reluguard.training.progress import Bars  # noqa: E402 - as above
from reluguard.training.recipes import Recipe, recipe_named  # noqa: E402 - as above
from reluguard.training.statistics.metrics import auroc, rate_above  # noqa: E402 - as above

Report = dict[str, Any]
_WHO = "exercise"
_CHUNK = 500  # requests between two looks at the alarm
_DRIFT_S = 0.5
_SEEN_S = 3.0  # in this time a capture is on disk and drift has been read
_PATIENCE_S = 60.0


def main() -> None:
    """Run the exercise for each attack and print what came of it."""
    options = _options()
    with tempfile.TemporaryDirectory() as aside:
        reports = run(options, options.out or Path(aside))
    if options.json:
        print(json.dumps(reports, indent=2))
    failed = any(
        not r.get("gate", {"passed": True})["passed"] or r["failed_requests"] for r in reports
    )
    sys.exit(1 if failed else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, help="an ONNX classifier; by default one of digits is trained")
    add("--data", help="labelled images it was not trained on, as `reluguard fit --data` takes")
    add("--recipe", help="what the guard is fitted on, but for X. [default, or digits]")
    add("--attack", action="append", help="X, by name or module:Class; repeatable. [patch-6]")
    add("--harvest", type=Path, help="work folder of an earlier fit on --data: not attacked again")
    add("--labels", type=int, default=200, help="labels that are given")
    add(
        "--requests", type=int, default=10_000, help="requests with X among them; half so many calm"
    )
    add("--share", type=float, default=0.02, help="of X among them")
    add("--generator", action="store_true", help="retrain on `--attack X` too, not on labels alone")
    add("--seed", type=int, default=0, help="of every random choice")
    add("--out", type=Path, help="a folder to keep everything in; goes on where it was")
    add("--prepare", action="store_true", help="only fit and attack; run again to go on")
    add("--json", action="store_true", help="print one JSON document instead of text")
    return parser.parse_args()


def run(options: argparse.Namespace, out: Path) -> list[Report]:
    """Return one report per attack."""
    seed, harvests = options.seed, []
    out.mkdir(parents=True, exist_ok=True)
    with Bars() as progress:
        if options.model is None:
            model, data = digits_files(out, seed, progress)
        else:
            model, data = options.model, options.data
        recipe = recipe_named(options.recipe or ("default" if options.model else "digits"))
        parts = split_data(model, str(data), out, seed)
        if options.harvest:
            harvests.append((options.harvest, parts.rows))
        reports: list[Report] = []
        for name in options.attack or ["patch-6"]:
            place = out / attack_named(name).name
            report = _run_one(options, parts, recipe, name, place, harvests, progress)
            if report:
                reports.append(report)
                write_file(place / "report.json", json.dumps(report, indent=2).encode())
                if not options.json:
                    print_report(report)
            harvests.append((place / "guard.work", np.arange(len(parts.rows))))
    return reports


def _run_one(
    options: argparse.Namespace,
    parts: Parts,
    recipe: Recipe,
    name: str,
    out: Path,
    harvests: Sequence[tuple[Path, Any]],
    progress: Bars,
) -> Report | None:
    seed, attack = options.seed, attack_named(name)
    left = without(recipe, attack)
    first, case = fit_without(
        parts, left, out / "guard", harvests=harvests, seed=seed, progress=progress
    )
    known = [*harvests, (out / "guard.work", np.arange(len(parts.rows)))]
    full = fit_all(parts, recipe, attack, out.parent / "full", known, seed, progress)
    caught, fresh = (
        attack_all(attack, data, parts, case, seed, out / f"{kept}.npz")
        for data, kept in ((parts.targets, "caught"), (parts.fresh, "fresh"))
    )
    if options.prepare:
        return None
    shelf, captures = out / "shelf", out / "captures"
    for old in (shelf, captures, out / "challenger", out / "misled", out / "poisoned"):
        shutil.rmtree(old, ignore_errors=True)
    promote(shelf, first.path, who=_WHO, why="the first guard")
    tokens = out / "tokens.toml"
    write_tokens(tokens)
    clean = parts.clean.images
    if int(case.splits["fit"].max()) >= len(case.dataset):  # mirror images are as good as new
        clean = np.concatenate([clean, clean[:, :, ::-1]])
    requests = min(options.requests, round(len(caught) / options.share))  # each X comes once
    calm = Traffic.mixed(clean, clean, requests=requests // 2, share=0.0, name="calm", seed=seed)
    wave = Traffic.mixed(
        clean,
        caught.images,
        requests=options.requests,
        share=options.share,
        name="x",
        seed=seed + 1,
    )
    settings = {"tokens": tokens, "capture": captures, "capture_share": 1.0, "reload_s": 0.1,
                "drift_s": _DRIFT_S, "max_wait_s": 30.0, "threads": 1}  # fmt: skip
    report: Report = {
        "attack": attack.name,
        "left_out": [p.change.name for p in recipe.attacks if p not in left.attacks],
        "old_attacks": len(left.attacks),
        "images": {"fresh": len(parts.fresh), "fresh_attacked": len(fresh)},
    }
    pair = Pair(model=parts.model, guard=shelf)
    with served(pair, settings={"tokens": tokens, "threads": 1}) as server:  # captures nothing
        report["before"] = measure(server, parts.fresh, fresh)
    with served(pair, settings=settings) as server:
        report["traffic"] = watch(server, calm, wave)
        truth = dict(zip(wave.ids, wave.attacked, strict=True))
        copy_captures(captures, out / "poisoned")  # before any label
        shown = {**calm.shown(), **wave.shown()}
        suspect = report["traffic"]["suspect"]
        given = _labels(captures, truth, shown, attack.name, options.labels, suspect)
        report["labels"] = label(server, given)
        report |= retrain(parts.model, shelf, captures, out / "challenger", name, options)
        if "gate" not in report:  # too few labelled attacks to learn from
            return report | {"failed_requests": report["traffic"]["failed"]}
        if report["gate"]["passed"]:
            report |= go_live(server, shelf, out / "challenger", parts, clean, fresh)
    failed = sum(report.get(step, {}).get("failed", 0) for step in ("promoted", "rolled_back"))
    report["failed_requests"] = failed + report["traffic"]["failed"]
    report["ceiling"] = measure_offline(parts, full, fresh) if full else None
    report["poisoned"] = poison(parts, out, given, attack.name, fresh, options)
    return report


def fit_all(
    parts: Parts,
    recipe: Recipe,
    attack: Attack,
    out: Path,
    harvests: Sequence[tuple[Path, Any]],
    seed: int,
    progress: Bars,
) -> Path | None:
    """Fit a guard that has seen X from the start, where the recipe has it, and return its folder.

    What it detects is about what can be hoped for from a few labels.
    """
    if attack.name not in {portion.change.name for portion in recipe.attacks}:
        return None
    first, _ = fit_without(parts, recipe, out, harvests=harvests, seed=seed, progress=progress)
    return first.path


def measure_offline(parts: Parts, guard: Path, fresh: Dataset) -> Report:
    """Return what a guard that is not in service makes of clean and attacked images."""
    opened = Guard.open(parts.model, guard, threads=1)
    verdicts = [opened.inspect(data.images) for data in (parts.fresh, fresh)]
    return _figures(*(v.score for v in verdicts), *(v.is_adversarial for v in verdicts))


def measure(server: Process, clean: Dataset, attacked: Dataset) -> Report:
    """Return what the server makes of clean and attacked images, asked by gRPC."""
    with Client(server.address, token=BOSS) as client:
        verdicts = [client.inspect(data.images) for data in (clean, attacked)]
    return _figures(*(v.score for v in verdicts), *(v.is_adversarial for v in verdicts))


def _figures(clean: Any, attacked: Any, flagged: Any, detected: Any) -> Report:
    limit = float(np.quantile(clean, 0.95, method="higher"))
    return {
        "auroc": round(auroc(clean, attacked), 4),
        "detected": round(float(detected.mean()), 4),
        "false_positive_rate": round(float(flagged.mean()), 4),
        "detected_at_5_percent": round(rate_above(attacked, limit).value, 4),
    }


def watch(server: Process, calm: Traffic, wave: Traffic) -> Report:
    """Send both and say after how many requests of the second the server advises to retrain."""
    failed = send(server.address, calm)
    before = _drift(server)
    alarm, told = None, before
    for start in range(0, len(wave), _CHUNK):
        chunk = wave.part(start, start + _CHUNK)
        failed += send(server.address, chunk)
        if alarm is None:
            told = _drift(server)
            if told["advice"] == "retrain":
                alarm = start + len(chunk)
                attacked = int(wave.attacked[:alarm].sum())
    after = _drift(server)
    return {
        "calm_requests": len(calm),
        "calm_advice": before["advice"],
        "requests": len(wave),
        "attacked": int(wave.attacked.sum()),
        "alarm_after_requests": alarm,
        "alarm_after_attacked": None if alarm is None else attacked,
        "advice": after["advice"],
        "suspect": after["suspect"],
        "drift": {name: round(value, 4) for name, value in after["statistics"].items()},
        "failed": failed,
    }


def _drift(server: Process) -> Report:
    time.sleep(_SEEN_S)
    return drift_of(server.metrics)


def copy_captures(folder: Path, out: Path) -> None:
    """Copy captures that a server is writing to."""
    out.mkdir()
    with (
        closing(sqlite3.connect(folder / INDEX)) as source,
        closing(sqlite3.connect(out / INDEX)) as copy,
    ):
        source.backup(copy)
    shutil.copytree(folder / "shards", out / "shards")


def label(server: Process, given: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Send labels through Feedback."""
    labels = [pb.Label(id=key, label=value) for key, value in given]
    with grpc.insecure_channel(server.address) as channel:
        ask = channel.unary_unary(
            "/reluguard.v1.Guard/Feedback", None, pb.FeedbackResponse.FromString
        )
        request = pb.FeedbackRequest(labels=labels).SerializeToString()
        taken = ask(request, metadata=as_boss(), timeout=30).labelled
    attacked = sum(value != "clean" for _, value in given)
    return {"taken": taken, "attacked": attacked, "clean": len(given) - attacked}


def _labels(
    captures: Path,
    truth: dict[str, Any],
    shown: dict[str, bytes],
    name: str,
    count: int,
    suspect: str,
) -> list[tuple[str, str]]:
    """Return what the most suspicious captures are, those of the suspected caller first.

    No image is labelled twice: clean traffic repeats itself here, and nobody asks again.
    """
    rows = list_captures(captures, limit=count, source=suspect) if suspect else []
    rows += list_captures(captures, limit=len(shown))
    given: dict[bytes, tuple[str, str]] = {}
    for row in rows:
        request = row.request
        word = f"attack:{name}" if truth.get(request, False) else "clean"
        given.setdefault(shown[request], (row.id, word))
    return list(given.values())[:count]


def retrain(
    model: Path, guard: Path, new: Path, out: Path, name: str, options: argparse.Namespace
) -> Report:
    """Run `reluguard retrain` and return how long it took and what the gate said."""
    words = ["retrain", "--guard", guard, "--model", model, "--new", new, "--out", out, "--json"]
    words += ["--attack", name] if options.generator else []
    command = [sys.executable, "-m", "reluguard", *map(str, words)]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "label more" in done.stderr:
        return {"not_retrained": done.stderr.strip().splitlines()[-1]}
    if not done.stdout:
        raise RuntimeError(f"retrain failed: {done.stderr}")
    gate = json.loads(done.stdout)["gate"]
    old = {row["name"]: row["challenger"] - row["champion"] for row in gate["rows"]
           if row["what"] == "old attack"}  # fmt: skip
    worst = min(old, key=lambda attack: old[attack])
    labels = [row for row in gate["rows"] if row["what"] == "labels"]
    return {
        "retrain_seconds": round(time.perf_counter() - started, 1),
        "gate": {
            "passed": gate["passed"],
            "reasons": gate["reasons"],
            "contradicted": [
                round(row[key], 3) for row in labels for key in ("challenger", "low", "high")
            ],
            "old_attacks": len(old),
            "old_mean_difference": round(float(np.mean(list(old.values()))), 4),
            "old_worst": [worst, round(old[worst], 4)],
        },
    }


def go_live(
    server: Process, shelf: Path, challenger: Path, parts: Parts, clean: Any, fresh: Dataset
) -> Report:
    """Shadow, promote and roll back under load; measure in between."""
    first, heir = live_guard(server.address), read_guard(challenger).digest
    shadow(shelf, challenger, who=_WHO, why="to see it beside the champion")
    until = time.monotonic() + _PATIENCE_S
    traffic = Traffic.mixed(clean, clean, requests=1000, share=0.0, name="shadow", seed=9)
    while "reluguard_challenger_info{" not in server.scrape() and time.monotonic() < until:
        time.sleep(0.1)
    send(server.address, traffic)
    counted = [line for line in server.scrape().splitlines()
               if line.startswith("reluguard_challenger_disagreements_total")]  # fmt: skip
    report: Report = {"shadow": {"requests": len(traffic), "disagreements": counted}}
    with loaded(server.address, clean) as load:
        promote(shelf, challenger, who=_WHO, why="learned the new attack")
        seconds = _wait_for(server, heir)
    report["promoted"] = {"seconds": seconds, "answered": load.answered, "failed": load.failed}
    report["after"] = measure(server, parts.fresh, fresh)
    with loaded(server.address, clean) as load:
        rollback(shelf, who=_WHO, why="to show that it works")
        seconds = _wait_for(server, first)
    report["rolled_back"] = {"seconds": seconds, "answered": load.answered, "failed": load.failed}
    report["after_rollback"] = measure(server, parts.fresh, fresh)
    return report


def _wait_for(server: Process, digest: str) -> float:
    started = time.monotonic()
    time.sleep(1.0)  # let the load see the version before, too
    while live_guard(server.address) != digest:
        if time.monotonic() > started + _PATIENCE_S:
            raise RuntimeError(f"the server did not take {digest[:16]} in {_PATIENCE_S:g} s")
        time.sleep(0.05)
    seconds = round(time.monotonic() - started, 2)
    time.sleep(1.0)
    return seconds


def poison(
    parts: Parts,
    out: Path,
    right: Sequence[tuple[str, str]],
    name: str,
    fresh: Dataset,
    options: argparse.Namespace,
) -> Report:
    """Retrain on the same captures with every third label wrong."""
    folder = out / "poisoned"
    wrong = {"clean": f"attack:{name}", f"attack:{name}": "clean"}
    said = [(key, wrong[value] if i % 3 == 0 else value) for i, (key, value) in enumerate(right)]
    set_label(folder, said, labeller="careless")
    result = retrain(parts.model, out / "guard", folder, out / "misled", name, options)
    if "gate" not in result:
        gate = {"contradicted": [], "reasons": [result["not_retrained"]]}
        return {"stopped": True, "gate": gate, "if_promoted": None}
    figures = measure_offline(parts, out / "misled", fresh)
    return {"stopped": not result["gate"]["passed"], **result, "if_promoted": figures}


def print_report(report: Report) -> None:
    """Print one attack's figures."""
    traffic, labels = report["traffic"], report["labels"]
    print(
        f"\n{report['attack']}, never seen: left out {', '.join(report['left_out']) or 'nothing'}"
    )
    alarm = traffic["alarm_after_requests"]
    told = f"after {alarm} requests, {traffic['alarm_after_attacked']} of them attacked"
    told += f"; suspect: {traffic['suspect'] or 'nobody'}"
    print(
        f"  alarm            {told if alarm else 'none'}; on calm traffic: {traffic['calm_advice']}"
    )
    print(f"  labels           {labels['attacked']} attacked, {labels['clean']} clean")
    if "gate" not in report:
        print(f"  not retrained    {report['not_retrained']}")
        return
    print(f"  retrained in     {report['retrain_seconds']} s")
    gate = report["gate"]
    print(f"  gate             {'passed' if gate['passed'] else 'refused'}; old attacks: mean "
          f"{gate['old_mean_difference']:+.4f}, worst {gate['old_worst'][1]:+.4f} "
          f"({gate['old_worst'][0]}) AUROC")  # fmt: skip
    print(f"  contradicted     {_contradicted(gate)}")
    for reason in gate["reasons"]:
        print(f"                   {reason}")
    print("                   AUROC  detected  false positives  detected at 5 %")
    poisoned = report["poisoned"]
    for title, figures in (
        ("before", report["before"]),
        ("after", report.get("after")),
        ("rolled back", report.get("after_rollback")),
        ("a third wrong", poisoned["if_promoted"]),
        ("always known", report["ceiling"]),
    ):
        if figures:
            print(f"  {title:<15}  {figures['auroc']:.3f}  {figures['detected']:8.3f}  "
                  f"{figures['false_positive_rate']:15.3f}  "
                  f"{figures['detected_at_5_percent']:15.3f}")  # fmt: skip
    for step in ("promoted", "rolled_back"):
        if step in report:
            moved = report[step]
            print(f"  {step:<15}  in {moved['seconds']} s under load: "
                  f"{moved['answered']} answered, {moved['failed']} failed")  # fmt: skip
    stopped = "stopped by the gate" if poisoned["stopped"] else "NOT stopped by the gate"
    print(
        f"  a third of the labels wrong: {stopped}; contradicted {_contradicted(poisoned['gate'])}"
    )
    for reason in poisoned["gate"]["reasons"]:
        print(f"                   {reason}")


def _contradicted(gate: Report) -> str:
    """Return the share of labels that contradict the rest, as text."""
    if not gate["contradicted"]:
        return "too few attacked ones to say"
    share, low, high = gate["contradicted"]
    return f"{share:.2f} [{low:.2f}, {high:.2f}] of the labels"


if __name__ == "__main__":
    main()
