"""The command line: one command per verb of the library, and no logic of its own.

Results go to standard output (JSON lines with ``--json``); progress, warnings and errors to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import heatmaps.viewer.arguments as viewing
import mil.arguments as ml
import mil.fewshot.arguments as few
from heatmaps.arguments import add_drawing, drawing
from heatmaps.qupath_arguments import add_region_rules, add_regions, qupath_options
from heatmaps.report.arguments import add_report, report_steps, reporting
from tiling.arguments import (
    add_export,
    add_foreign,
    add_no_pixels,
    add_tiles,
    cut_recipe,
    nominal_spec,
    selection_files,
)
from tiling.commands import Commands, add_checks, add_output, add_overwrite, add_results
from tiling.doctor.arguments import add_doctor
from tiling.workers.arguments import add_crew, asking, crew, threads
from wsi.arguments import add_method, add_resolution, add_slides, tissue_method
from wsi.errors import MicrotomeError, UsageError
from wsi.messages import messages, on_a_terminal
from wsi.stopping import stop_code, stoppable

if TYPE_CHECKING:
    from mil.card import Named
    from mil.checkpoint import Model
    from tiling.batch import Batch
    from tiling.pipeline import Step
    from tiling.reporter import Reporter

Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    command = arguments.__dict__.pop("command")
    try:
        with messages(debug=arguments.debug), stoppable():
            return int(command(arguments))
    except MicrotomeError as error:
        if arguments.debug:
            raise
        _complain(str(error))
        return error.exit_code
    except BrokenPipeError:  # whoever read our results has gone, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as stop:
        _complain("interrupted. Run the same command again to go on: what is finished is kept")
        return stop_code(stop)
    except Exception as error:
        if arguments.debug:
            raise
        _complain(f"unexpected {type(error).__name__}: {error}. Run it with --debug and report it")
        return 70


# Commands that look -----------------------------------------------------------------------------------------


def info(arguments: Arguments) -> int:
    """What a slide file is."""
    from tiling.batch import describe_file
    from tiling.manifest import list_entries

    how = {"mpp": arguments.mpp_override, "trust_objective": arguments.trust_objective}
    reporter, code = _reporter(arguments), 0
    entries = list_entries(arguments.slides)
    for _, answer in asking()(entries, partial(describe_file, **how), debug=arguments.debug):
        if isinstance(answer, MicrotomeError):
            _complain(str(answer))
            code = max(code, answer.exit_code)
        else:
            reporter.facts(answer)
    return code


def verify(arguments: Arguments) -> int:
    """Check that every committed byte is still there."""
    from tiling.output import Output, verify_items

    reporter, output, items, damaged = _reporter(arguments), Output(arguments.out), 0, 0
    with output.lock() if arguments.set_aside else contextlib.nullcontext():
        for report in verify_items(output, full=arguments.full):
            items += 1
            damaged += bool(report.damage or report.stale)
            for found in (*report.damage, *report.stale):
                reporter.result({"item": str(report.item), "file": found.file, "damage": found.reason})
            if report.damage and arguments.set_aside:
                reporter.say(f"set aside: {output.set_aside(report.item)}")
    checked = "every byte" if arguments.full else "names and sizes"
    reporter.result({"items": items, "damaged": damaged, "checked": checked})
    if damaged and not arguments.set_aside:
        reporter.say(
            "Run this with --set-aside, and then the command that made them: it makes them anew. "
            "What is out of date, that command replaces with --overwrite."
        )
    return 1 if damaged else 0


def view(arguments: Arguments) -> int:
    """Look at slides and results in the browser, and mark what is right and wrong; Ctrl-C ends it."""
    from heatmaps.viewer.server import open_viewer

    shown = viewing.catalogue(arguments)
    with open_viewer(shown, port=arguments.port, browser=not arguments.no_browser) as viewer:
        _reporter(arguments).facts({"address": viewer.address, "slides": len(shown)})
        viewer.serve()
    return 0


def doctor(arguments: Arguments) -> int:
    """Whether this machine is fit for the work, how fast it is, and what a plan takes of it."""
    from mil.device import describe_devices
    from mil.speed import encode_speed
    from tiling.doctor.diagnose import diagnose
    from tiling.doctor.finding import Finding, in_words

    reporter = _reporter(arguments)
    with reporter.progress("plan", unit="slide") as progress:
        findings = [*diagnose(arguments, describe_devices(), encode_speed, progress=progress)]
    for told in map(Finding.as_json, findings) if arguments.json else [in_words(findings)]:
        reporter.facts(told)
    return 1 if any(finding.advice for finding in findings) else 0


# Commands that make -----------------------------------------------------------------------------------------


def tissue(arguments: Arguments) -> int:
    """Find tissue, and leave an outline to look at."""
    from tiling.pipeline import survey_steps

    return _crewed(arguments).over_slides(partial(survey_steps, tissue_method(arguments)))


def tile(arguments: Arguments) -> int:
    """Cut slides into normalised tiles."""
    from tiling.qc import tile_steps

    recipe, files = cut_recipe(arguments), selection_files(arguments)
    return _crewed(arguments).over_slides(partial(tile_steps, recipe, files), check=files.check)


def encode(arguments: Arguments) -> int:
    """Turn tiles into features."""
    steps = partial(ml.encoding, arguments, arguments.encoder, contexts=arguments.context_mpp)
    return _crewed(arguments, wants_gpu=True).over_stores(steps, slides=arguments.slides)


def train(arguments: Arguments) -> int:
    """Train heads on labelled slides, with cross-validation, calibration and a learning curve."""
    from mil.device import choose_device
    from mil.study import train_model
    from mil.training.records import headline
    from mil.training.sources import find_stores

    if not (arguments.out or arguments.features):
        raise UsageError("no slides are named", action="Give OUT, or --features")
    reporter, recipe = _reporter(arguments), ml.study_recipe(arguments)
    stores = find_stores(arguments.out, arguments.features or (), encoder=recipe.encoder)
    with reporter.progress("train", unit="epoch") as progress:
        model = train_model(
            stores,
            arguments.labels,
            recipe=recipe,
            folder=arguments.model,
            device=choose_device(arguments.device),
            memory_bytes=ml.memory_bytes(arguments),
            report=lambda member, of, epoch: progress(member * epoch.of + epoch.number, of * epoch.of),
        )
    facts = {key: model.training[key] for key in ("class_counts", "patients", "folds")}
    reporter.facts({"model": str(arguments.model)} | facts | headline(model.training["figures"]))
    return 0


def evaluate(arguments: Arguments) -> int:
    """Say how good a trained model is and how sure that is, and what a person has to look at."""
    from mil.assessment.report import default_folder, evaluate_model
    from mil.assessment.tables import blocks
    from tiling.output import Output

    reporter = _reporter(arguments)
    with reporter.progress("evaluate", unit="slide") as progress:
        found = evaluate_model(
            arguments.model,
            arguments.report or default_folder(arguments.model),
            output=Output(arguments.out) if arguments.out else None,
            labels=arguments.labels,
            against=arguments.against,
            wanted=ml.wanted_assessment(arguments),
            overwrite=arguments.overwrite,
            report=progress,
        )
    _tell(reporter, blocks(found.content), found.content, folder=found.folder, made=found.made)
    return 0


def fewshot_train(arguments: Arguments) -> int:
    """Meta-train learners that adapt to a few labelled tiles or slides."""
    from mil.device import choose_device
    from mil.fewshot.study import divide, headline, train_meta

    reporter, source = _reporter(arguments), few.labelled_to_train(arguments)
    recipe = few.meta_recipe(arguments, of_tiles=source.pool.of_tiles)
    sides = divide(source.pool, novel=arguments.novel, validation=arguments.validation, seed=recipe.seed)
    with reporter.progress("fewshot train", unit="step") as progress:
        meta = train_meta(
            sides,
            source.features,
            folder=arguments.model,
            recipe=recipe,
            inputs=source.inputs,
            device=choose_device(arguments.device),
            report=progress,
        )
    reporter.facts({"meta": str(arguments.model)} | headline(meta))
    return 0


def fewshot_evaluate(arguments: Arguments) -> int:
    """Judge all learners and plain baselines on the same tasks of unseen classes, and say which wins."""
    from mil.device import choose_device
    from mil.fewshot.report import default_folder, evaluate_fewshot
    from mil.fewshot.tables import blocks

    reporter, source = _reporter(arguments), few.labelled_to_judge(arguments)
    with reporter.progress("fewshot evaluate", unit="task") as progress:
        found = evaluate_fewshot(
            source,
            meta=arguments.model,
            folder=arguments.report or default_folder(arguments.model),
            settings=few.fewshot_settings(arguments, of_tiles=source.pool.of_tiles),
            classes=arguments.classes,
            device=choose_device(arguments.device),
            overwrite=arguments.overwrite,
            report=progress,
        )
    _tell(reporter, blocks(found.content), found.content, folder=found.folder, made=found.made)
    return 0


def adapt(arguments: Arguments) -> int:
    """Learn from a few marked regions or labelled slides, and draw what that gives, in seconds."""
    from heatmaps.draw import draw_step
    from mil.checkpoint import load_model
    from mil.fewshot.choosing import facts
    from mil.steps import predict_step

    folder, choice, slides = few.adapted(arguments)
    model, ensemble = load_model(folder)
    _reporter(arguments).facts({"model": str(folder)} | facts(choice))
    drawing = draw_step(model.name, weights_sha256=model.weights_sha256, qupath=qupath_options(arguments))
    steps = [predict_step(model, ensemble), drawing]
    return _batch(arguments, model).over(slides, lambda: steps)


def predict(arguments: Arguments) -> int:
    """Score tiles and slides with a trained model; calibrated, and with what a person has to look at."""
    from mil.card import read_name
    from mil.steps import predict_steps

    model = read_name(arguments.model)
    return _crewed(arguments, model).over_stores(partial(predict_steps, arguments.model))


def heatmap(arguments: Arguments) -> int:
    """Draw scores as files that people open."""
    from heatmaps.draw import draw_steps
    from mil.card import read_name

    how = {"settings": drawing(arguments), "qupath": qupath_options(arguments)}
    model = read_name(arguments.model)
    steps = partial(draw_steps, model.name, weights_sha256=model.weights_sha256, **how)
    return _crewed(arguments, model).over_stores(steps)


def report(arguments: Arguments) -> int:
    """Make a page of each slide and one of all of them: to read, to print, to hand on."""
    plan = reporting(arguments)
    code = _crewed(arguments).over(plan.slides, partial(report_steps, arguments))
    _reporter(arguments).result({"cohort": str(plan.publish_cohort())})
    return code


def export(arguments: Arguments) -> int:
    """Write tiles' places and features as CLAM's or TRIDENT's files."""
    from mil.interchange import export_output
    from tiling.output import Output

    settings = {"encoder": arguments.encoder, "overwrite": arguments.overwrite}
    paths = export_output(Output(arguments.out), arguments.format, arguments.to, **settings)
    _reporter(arguments).result({"files": len(paths), "folder": str(arguments.to)})
    return 0


def import_(arguments: Arguments) -> int:
    """Take tiles' places and features from CLAM's or TRIDENT's files."""
    from tiling.interchange.steps import find_foreign, import_steps, pick_slides
    from tiling.manifest import find_entries

    foreign = find_foreign(arguments.files)
    slides = pick_slides(foreign, find_entries(arguments.slides))
    how = {"method": tissue_method(arguments), "encoder": arguments.encoder, "spec": nominal_spec(arguments)}
    return _crewed(arguments).over_entries(slides, partial(import_steps, foreign, **how))


def run(arguments: Arguments) -> int:
    """Slides to scores and heatmaps with a trained model, cut and encoded as its training slides were."""
    from mil.card import read_name

    model = read_name(arguments.model)
    return _crewed(arguments, model, wants_gpu=True).over_slides(partial(_run_steps, arguments))


def _run_steps(arguments: Arguments) -> list[Step]:
    from heatmaps.draw import draw_step

    model, steps = ml.scoring(arguments)
    drawn = draw_step(model.name, weights_sha256=model.weights_sha256, qupath=qupath_options(arguments))
    return [*steps, drawn]


def demo(arguments: Arguments) -> int:
    """The whole job on synthetic slides with known lesions, then on a real slide if there is one."""
    from mil.demo import MODEL_NAME, demonstrate, how_to_look
    from wsi.find import find_real_slides

    reporter = _reporter(arguments)
    more = ["--json"] if arguments.json else []
    result = demonstrate(arguments.out, lambda words: main([*words, *more]), say=reporter.say)
    reporter.facts(asdict(result))
    model, results = arguments.out / MODEL_NAME, arguments.out / "results"
    for path in arguments.slide or find_real_slides():
        reporter.say("A real slide. The model has seen synthetic tissue only: its scores mean nothing here.")
        words = ["run", str(path), "-m", str(model), "-o", str(results), *more]
        reporter.say("$ microtome " + " ".join(words))
        if code := main(words):
            return code
    if not arguments.json:
        reporter.say(how_to_look(arguments.out))
    return 0


# Speaking -------------------------------------------------------------------------------------------------


def _reporter(arguments: Arguments) -> Reporter:
    from tiling.reporter import Reporter

    return Reporter(sys.stdout, sys.stderr, as_json=arguments.json, quiet=arguments.quiet)


def _tell(
    reporter: Reporter,
    blocks: Sequence[Mapping[str, object]],
    content: Mapping[str, Any],
    *,
    folder: Path,
    made: bool,
) -> None:
    """A report in paragraphs, or all of it as JSON."""
    for block in () if reporter.as_json else blocks:
        reporter.facts(block)
    more = content if reporter.as_json else {}
    reporter.result({"report": str(folder), "status": "done" if made else "already done", **more})


def _batch(arguments: Arguments, model: Model | Named | None = None, **crew: Any) -> Batch:
    from tiling.batch import Batch

    known = (model.name, model.weights_sha256) if model else None
    return Batch(arguments, _reporter(arguments), sys.argv[1:], known, **crew)


def _crewed(arguments: Arguments, model: Named | None = None, *, wants_gpu: bool = False) -> Batch:
    """A batch that those do whom `add_crew` names."""
    pool = crew(arguments, wants_gpu=wants_gpu, say=_reporter(arguments).say)
    return _batch(arguments, model, pool=pool, threads=threads(arguments))


def _complain(text: str) -> None:
    print(f"ERROR {on_a_terminal(text)}", file=sys.stderr, flush=True)


# Arguments ------------------------------------------------------------------------------------------------

FEW_SHOT = "learners that adapt to a few labelled tiles or slides: train them, see what they are worth"


def build_parser() -> argparse.ArgumentParser:
    """All commands, each with help, an example and the options of the library function behind it."""
    commands = Commands("Whole slides to predictions and heatmaps.", families={"fewshot": FEW_SHOT})
    add = commands.add
    add(info, "slide.svs --json", add_slides)
    add(tissue, "slides/ -o results", add_slides, add_method, add_crew, add_output)
    add(tile, "slides/ -o results --mpp 0.5", add_slides, add_tiles, add_crew, add_output)
    to_encode = add_results, ml.add_encoder, ml.add_encoding, add_crew, add_overwrite
    add(encode, "results --encoder uni", *to_encode)
    to_train = ml.add_training, ml.add_encoder, ml.add_model
    command = add(train, "results --labels labels.csv -m model", *to_train)
    command.add_argument("out", metavar="OUT", type=Path, nargs="?", help="the folder that was given to -o")
    add(evaluate, "-m model", ml.add_evaluation, ml.add_model, add_overwrite)
    add(fewshot_train, "results --annotations regions/ -m meta", few.add_training, ml.add_encoder)
    add(fewshot_evaluate, "results --annotations regions/ -m meta", few.add_evaluation, add_overwrite)
    command = add(adapt, "-o results --annotations slide.geojson --model meta", few.add_adapting, add_output)
    add_region_rules(command)
    add(predict, "results -m model", add_results, ml.add_model, add_crew, add_overwrite)
    to_draw = add_results, ml.add_model, add_drawing, add_regions, add_crew, add_overwrite
    add(heatmap, "results -m model", *to_draw)
    add(report, "results", add_results, add_report, add_crew, add_overwrite)
    to_run = add_slides, ml.add_model, add_output, ml.add_network, add_no_pixels, add_crew, add_regions
    add(run, "slides/ -m model -o results", *to_run)
    add(export, "results --format trident --to trident-files", add_results, add_export, add_overwrite)
    foreign = add_foreign, add_resolution, add_method, add_crew, add_output
    add(import_, "trident-files --slides slides/ -o results", *foreign)
    add(view, "results", viewing.add_viewing)
    add(verify, "results --full", add_results, add_checks)
    add(doctor, "results --plan slides.csv", add_doctor, ml.add_encoder)
    command = add(demo, "-o demo-out")
    command.add_argument("-o", "--out", type=Path, default=Path("demo-out"), help="default %(default)s")
    command.add_argument("--slide", type=Path, nargs="+", help="real slides to run the demo's model on")
    return commands.parser


if __name__ == "__main__":
    # Other processes import what they do from a module, which a main program is not.
    sys.exit(importlib.import_module("cli").main())
