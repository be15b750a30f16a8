"""Few-shot learning on drawn slides of many tissues: new tissues, of new patients, at new sites.

    python -m benchmarks.fewshot [--folder fewshot-out] [--quick] [--write]

1. *Tiles.* Slides of five tissues each, stained and scanned differently at each site, without stain
   normalisation. Learners are meta-trained at six sites on the tissues that are annotated there, and judged
   at three new sites on eight tissues that they never saw: `tile`, `encode`, `fewshot train`, `fewshot
   evaluate`.
2. *The loop.* A simulated pathologist marks a few tiles on a new slide, adapts, marks more, adapts again:
   `adapt`. `benchmarks/fewshot_loop.py` says how.
3. *Slides.* Slides of two background tissues and one finding, which is the label; learners of slides, with
   gated attention, are judged on findings that they never saw, at new sites.

Settings are the commands' defaults but for the few that the printed command lines show; none was chosen by
looking at the novel classes. What is there already is not made again: for a new run delete the folder.
``--write`` puts tables and picture into docs/. ``--quick`` shows that it works; its figures are no result.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.commands import microtome
from benchmarks.fewshot_cohorts import FULL, QUICK, Scale, write_findings, write_loop, write_tiles
from benchmarks.fewshot_loop import FIRST, MORE, STRATEGIES, Story, tell, time_command
from benchmarks.fewshot_picture import draw_picture
from mil.fewshot.tables import verdict
from wsi.durable import write_file

DOCS = Path(__file__).resolve().parent.parent / "docs"
_BEGIN, _END = "<!-- from here on by python -m benchmarks.fewshot --write -->\n", "<!-- up to here -->\n"
Content = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("fewshot-out"))
    parser.add_argument("--quick", action="store_true", help="a small run, whose figures are no result")
    parser.add_argument("--write", action="store_true", help="renew docs/fewshot.md and docs/fewshot.jpg")
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("--quick gives no result to write")
    scale, folder, began = QUICK if options.quick else FULL, options.folder, time.perf_counter()
    levels = {"tiles": of_tiles(folder / "tiles", scale)}
    loop = write_loop(folder / "loop", scale)
    stories, shown = tell(loop, folder / "tiles" / "meta", draws=scale.draws, rounds=scale.rounds)
    seconds = time_command(loop[0], folder / "tiles" / "meta")
    levels["slides"] = of_slides(folder / "slides", scale)
    lines = [*table("tiles", levels["tiles"]), *stopping_table(folder / "tiles" / "meta")]
    lines += [*loop_table(stories, seconds), *table("slides", levels["slides"])]
    words = "\n".join(lines)
    picture = DOCS / "fewshot.jpg" if options.write else folder / "fewshot.jpg"
    draw_picture(picture, levels=levels, stories=stories, shown=shown)
    print(f"\n{words}\n\n{picture}: {picture.stat().st_size / 1000:.0f} kB")
    print(f"{time.perf_counter() - began:.0f} s, torch {torch.__version__}")
    if options.write:
        renew(DOCS / "fewshot.md", words)
    if options.quick:
        print("A quick run. Its figures are no result.")


def of_tiles(folder: Path, scale: Scale) -> Content:
    """What ``fewshot.json`` says of tasks of tiles."""
    write_tiles(folder, scale)
    results = str(folder / "results")
    meta = folder / "meta"
    if not meta.exists():
        words = ["--annotations", str(folder / "known" / "annotations")]
        words += ["--labels", str(folder / "known" / "labels.csv"), "-m", str(meta)]
        microtome("fewshot", "train", results, *words, *scale.tile_training, "--quiet")
    words = [
        "--annotations",
        str(folder / "new" / "annotations"),
        "--labels",
        str(folder / "new" / "labels.csv"),
    ]
    microtome("fewshot", "evaluate", results, *words, "-m", str(meta), *scale.tile_tasks)
    return read_report(meta)


def of_slides(folder: Path, scale: Scale) -> Content:
    """Likewise of tasks of slides."""
    write_findings(folder, scale)
    results, meta = str(folder / "results"), folder / "meta"
    if not meta.exists():
        words = ["--labels", str(folder / "known" / "labels.csv"), "-m", str(meta)]
        microtome("fewshot", "train", results, *words, *scale.slide_training, "--quiet")
    words = ["--labels", str(folder / "new" / "labels.csv"), "-m", str(meta)]
    microtome("fewshot", "evaluate", results, *words, *scale.slide_tasks)
    return read_report(meta)


def read_report(meta: Path) -> Content:
    found: Content = json.loads((meta.with_name(f"{meta.name}-evaluation") / "fewshot.json").read_bytes())
    return found


# Tables --------------------------------------------------------------------------------------------------


def table(level: str, content: Content) -> Iterator[str]:
    """All methods by number of shots, and who wins."""
    tasks, shots = content["tasks"], content["shots"]
    yield f"### New {'tissues' if level == 'tiles' else 'findings'}: tasks of {level}"
    yield ""
    yield (
        f"{len(content['classes'])} classes that no learner saw ({', '.join(content['classes'])}), "
        f"{content['bags']} {level} of {content['patients']} patients at {content['sites']} sites that none "
        f"saw; {tasks['episodes']} tasks of {tasks['ways']} classes for each number of shots, "
        f"{tasks['queries']} queries a class. Learnt from: {', '.join(content['meta']['base_classes'])}; "
        f"for validation: {', '.join(content['meta']['validation_classes'])}."
    )
    yield ""
    yield f"| accuracy | {' | '.join(_shots(one) for one in shots)} |"
    yield "|---|" + "---|" * len(shots)
    for number, one in enumerate(shots[0]["methods"]):
        cells = [_accuracy(found["methods"][number]) for found in shots]
        yield f"| {one['method']} | {' | '.join(cells)} |"
    yield ""
    heads = [f"{_shots(one)}: {one['best_baseline']}" for one in shots]
    yield f"| less the best baseline | {' | '.join(heads)} |"
    yield "|---|" + "---|" * len(shots)
    for number, one in enumerate(shots[0]["methods"]):
        cells = [_difference(found["methods"][number]) for found in shots]
        yield f"| {one['method']} | {' | '.join(cells)} |"
    yield ""
    for found in shots:
        yield f"- {_shots(found)}: {'; '.join(found['words'])}."
    yield from (f"- Caution: {text}." for text in content["cautions"])
    yield ""


def _shots(found: Content) -> str:
    return f"{found['shots']} shot{'s' if found['shots'] > 1 else ''}"


def _accuracy(one: Content) -> str:
    found = one["accuracy"]
    patients = one["over_patients"]
    over = f" ({patients['low']:.3f} to {patients['high']:.3f})" if patients else ""
    return f"{found['mean']:.3f} ± {found['high'] - found['mean']:.3f}{over}"


def _difference(one: Content) -> str:
    best = one["to_best"]
    if not best:
        return "the best baseline"
    found = best["corrected"]
    word = f"**{verdict(one)}**" if verdict(one) == "gain" else verdict(one)
    return f"{found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f}), {word}"


def stopping_table(meta: Path) -> Iterator[str]:
    """The looks of each learner's training: the best, which it kept, and the last one."""
    yield "### When meta-training stopped"
    yield ""
    yield (
        "Of the learners of tiles: accuracy on the validation tasks, and the loss in training on the base "
        "classes (each learner's is one of its own kind), at the best look, which was kept, and at the last:"
    )
    yield ""
    yield "| learner | best look: step | accuracy | loss | last look: step | accuracy | loss |"
    yield "|---|---|---|---|---|---|---|"
    with (meta / "curves.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for name in dict.fromkeys(row["learner"] for row in rows):
        looks = [row for row in rows if row["learner"] == name]
        best = next(row for row in reversed(looks) if row["best"] == "1")
        cells = [
            f"{row['step']} | {float(row['accuracy']):.3f} | {float(row['loss']):.3f}"
            for row in (best, looks[-1])
        ]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""


def loop_table(stories: Sequence[Story], seconds: tuple[float, float]) -> Iterator[str]:
    """Accuracy after each round, for each way of marking."""
    counts = [each.tiles for each in stories[0].rounds]
    places = sorted({story.place for story in stories})
    yield "### The loop"
    yield ""
    of_one = len(stories) // len(STRATEGIES)
    yield (
        f"New slides of eight unseen tissues at {len(places)} new sites; {of_one} first sets of marks, "
        f"{FIRST} tiles a tissue, and {MORE} more tiles a round. Accuracy, mean over these: "
        "on the half of the slide that is never marked / on another slide of the same patient. Gains: ± "
        f"standard error over the {of_one}."
    )
    yield ""
    yield f"| marked | {' | '.join(f'{count} tiles' for count in counts)} | last less first |"
    yield "|---|" + "---|" * (len(counts) + 1)
    ends = {}
    for strategy, meaning in STRATEGIES.items():
        told = np.array(
            [
                [(each.here, each.there) for each in story.rounds]
                for story in stories
                if story.strategy == strategy
            ]
        )  # (stories, rounds, 2)
        ends[strategy] = told[:, -1]
        cells = [f"{here:.3f} / {there:.3f}" for here, there in told.mean(axis=0).tolist()]
        yield f"| {meaning} | {' | '.join(cells)} | {_gain(told[:, -1] - told[:, 0])} |"
    yield ""
    for strategy in list(STRATEGIES)[:-1]:
        yield f"- {strategy} less random, last round: {_gain(ends[strategy] - ends['random'])}."
    first = [story.rounds[0] for story in stories if story.strategy == "random"]
    every = [each for story in stories for each in story.rounds]
    names = [each.learner for each in every]
    picked = sorted({(-names.count(name), name) for name in names})
    yield (
        f"- After the first marks `adapt` promised {np.mean([e.promised for e in first]):.3f} by "
        f"cross-validation on them (mean), and {np.mean([e.here for e in first]):.3f} of the rest of the "
        "slide were right."
    )
    yield f"- Picked, of {len(names)} times: {', '.join(f'{name} {-count}' for count, name in picked)}."
    yield (
        "- One `adapt` from the shell, Python's start, scores and heatmaps of the slide included, took "
        f"{seconds[0]:.1f} s, and {seconds[1]:.1f} s on the processor, with {every[-1].tiles} tiles marked."
    )
    yield ""


def _gain(values: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """Mean difference and its standard error, on the marked slide / on the other: ``(stories, 2)``."""
    error = values.std(axis=0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.full(2, np.nan)
    return " / ".join(f"{mean:+.3f} ± {e:.3f}" for mean, e in zip(values.mean(axis=0), error, strict=True))


def renew(path: Path, words: str) -> None:
    """Replace what is between the two marks of the document."""
    before, rest = path.read_text().split(_BEGIN)
    _, after = rest.split(_END)
    write_file(path, f"{before}{_BEGIN}\n{words}\n{_END}{after}".encode())


if __name__ == "__main__":
    main()
