"""The command line: one command per verb of the library, and no logic of its own.

Results go to standard output (JSON lines with ``--json``); progress, warnings and errors to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi.errors import MicrotomeError, UsageError
from wsi.messages import messages, printable

if TYPE_CHECKING:
    from mil.checkpoint import Model
    from tiling.cohort import Outcome
    from tiling.cut import CutRecipe
    from tiling.pipeline import Pipeline, Step
    from tiling.reporter import Reporter
    from wsi.slide import Slide
    from wsi.tissue import TissueMethod

Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        with messages(debug=arguments.debug):
            return int(arguments.command(arguments))
    except MicrotomeError as error:
        if arguments.debug:
            raise
        _complain(str(error))
        return error.exit_code
    except BrokenPipeError:  # whoever read our results has gone, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        _complain("interrupted. Run the same command again to go on: what is finished is kept")
        return 130
    except Exception as error:
        if arguments.debug:
            raise
        _complain(f"unexpected {type(error).__name__}: {error}. Run it with --debug and report it")
        return 70


# Commands that look -----------------------------------------------------------------------------------------


def info(arguments: Arguments) -> int:
    """What a slide file is."""
    from wsi.describe import describe
    from wsi.find import find_slides

    reporter, code = _reporter(arguments), 0
    for path in find_slides(arguments.slides):
        try:
            with _open_slide(path, arguments) as slide:
                reporter.facts(describe(slide))
        except MicrotomeError as error:
            _complain(str(error))
            code = 1
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
        reporter.say("Run this with --set-aside, and then the command that made them: it makes them anew.")
    return 1 if damaged else 0


def doctor(arguments: Arguments) -> int:
    """Whether this machine is fit for the work."""
    from mil.device import describe_devices
    from tiling.doctor import Finding, examine

    reporter = _reporter(arguments)
    findings = [*examine(arguments.out), *(Finding(*row) for row in describe_devices())]
    if arguments.json:
        for finding in findings:
            reporter.result(asdict(finding))
    else:
        reporter.facts({f.name: f"{f.value}  <- {f.advice}" if f.advice else f.value for f in findings})
    return 1 if any(finding.advice for finding in findings) else 0


# Commands that make -----------------------------------------------------------------------------------------


def tissue(arguments: Arguments) -> int:
    """Find tissue, and leave an outline to look at."""
    from tiling.pipeline import survey_step

    return _over_slides(arguments, [survey_step(_tissue_method(arguments))])


def tile(arguments: Arguments) -> int:
    """Cut slides into normalised tiles."""
    from tiling.pipeline import cut_step, survey_step

    recipe = _cut_recipe(arguments)
    return _over_slides(arguments, [survey_step(recipe.tissue), cut_step(recipe)])


def encode(arguments: Arguments) -> int:
    """Turn tiles into features."""
    return _over_stores(arguments, [_encode_step(arguments, arguments.encoder)])


def train(arguments: Arguments) -> int:
    """Train a head on labelled slides."""
    from mil.study import train_model
    from mil.training import TrainingRecipe
    from tiling.output import Output

    reporter = _reporter(arguments)
    with reporter.progress("train", unit="epoch") as progress:
        model = train_model(
            Output(arguments.out),
            arguments.labels,
            encoder=arguments.encoder,
            recipe=replace(TrainingRecipe(), **_given(arguments, "head", "epochs", "seed")),
            folder=arguments.model,
            report=lambda done, total, loss: progress(done, total),
        )
    figures = {key: model.training[key] for key in ("first_loss", "last_loss")}
    slides = len(model.training["slides"])
    reporter.result({"model": model.name, "classes": model.classes, "slides": slides} | figures)
    return 0


def predict(arguments: Arguments) -> int:
    """Score tiles and slides with a trained model."""
    from mil.checkpoint import load_model
    from mil.steps import predict_step

    model, head = load_model(arguments.model)
    return _over_stores(arguments, [predict_step(model, head)], model=model)


def heatmap(arguments: Arguments) -> int:
    """Draw scores as files that people open."""
    from heatmaps.draw import draw_step
    from mil.checkpoint import load_model

    model, _ = load_model(arguments.model)
    return _over_stores(arguments, [draw_step(model.name, weights_sha256=model.weights_sha256)], model=model)


def run(arguments: Arguments) -> int:
    """Slides to scores and heatmaps with a trained model, cut and encoded as its training slides were."""
    from heatmaps.draw import draw_step
    from mil.checkpoint import load_model
    from mil.steps import predict_step
    from tiling.cut import recipe_from_json
    from tiling.pipeline import cut_step, survey_step

    model, head = load_model(arguments.model)
    recipe = recipe_from_json(model.features.as_json())
    steps = [
        survey_step(recipe.tissue),
        cut_step(recipe),
        _encode_step(arguments, model.features.encoder["name"], expected=model.features.encoder),
        predict_step(model, head),
        draw_step(model.name, weights_sha256=model.weights_sha256),
    ]
    return _over_slides(arguments, steps, model=model)


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


# Settings from arguments ------------------------------------------------------------------------------------


def _given(arguments: Arguments, *names: str) -> dict[str, Any]:
    """The options that were given; the others keep the library's own defaults."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _tissue_method(arguments: Arguments) -> TissueMethod:
    from wsi.tissue import HlsThresholds, SaturationOtsu

    return SaturationOtsu() if getattr(arguments, "method", None) == "otsu" else HlsThresholds()


def _cut_recipe(arguments: Arguments) -> CutRecipe:
    from tiling.cut import CutRecipe
    from tiling.grid import TileSpec

    try:
        spec = replace(TileSpec(), **_given(arguments, "size_px", "mpp", "overlap_px"))
        recipe = replace(CutRecipe(), spec=spec, tissue=_tissue_method(arguments))
        if arguments.stain == "none":
            recipe = replace(recipe, stain=None)
        return replace(recipe, **_given(arguments, "min_tissue"))
    except ValueError as error:
        raise UsageError(str(error), action="See 'microtome tile --help'") from error


def _encode_step(arguments: Arguments, name: str, *, expected: Mapping[str, Any] | None = None) -> Step:
    from mil.device import Precision, choose_device
    from mil.encoders import load_encoder, require_identity
    from mil.steps import encode_step

    encoder = load_encoder(name, weights=arguments.weights, device=str(choose_device(arguments.device)))
    if expected is not None:
        require_identity(encoder, expected)
    return encode_step(encoder, precision=Precision(arguments.precision) if arguments.precision else None)


def _open_slide(path: Path, arguments: Arguments) -> Slide:
    from wsi.slide import Slide

    return Slide(path, mpp=arguments.mpp_override, trust_objective=arguments.trust_objective)


# Running over many ----------------------------------------------------------------------------------------


def _over_slides(arguments: Arguments, steps: Sequence[Step], *, model: Model | None = None) -> int:
    from tiling.output import name_slides
    from tiling.pipeline import Pipeline
    from wsi.find import find_slides

    slides = name_slides(find_slides(arguments.slides))
    pipeline = Pipeline(steps, partial(_open_slide, arguments=arguments), overwrite=arguments.overwrite)
    return _over(arguments, slides, pipeline, model=model)


def _over_stores(arguments: Arguments, steps: Sequence[Step], *, model: Model | None = None) -> int:
    from tiling.output import Output
    from tiling.pipeline import Pipeline

    slides = Output(arguments.out).slides_with_tiles()
    if not slides:
        raise UsageError("holds no tiles", path=arguments.out, action="Run 'microtome tile' first")
    return _over(arguments, slides, Pipeline(steps, overwrite=arguments.overwrite), model=model)


def _over(
    arguments: Arguments, slides: Mapping[str, Path], pipeline: Pipeline, *, model: Model | None
) -> int:
    from tiling.cohort import exit_code
    from tiling.output import Output

    output, reporter = Output(arguments.out), _reporter(arguments)

    def report(outcome: Outcome) -> None:
        known = (model.name, model.weights_sha256) if model else None
        reporter.outcome(outcome, output, model=known)

    outcomes = pipeline.run(
        output,
        slides,
        command=sys.argv[1:],
        show=reporter.progress,
        report=report,
        debug=arguments.debug,
    )
    reporter.failures(outcomes)
    return exit_code(outcomes)


# Speaking -------------------------------------------------------------------------------------------------


def _reporter(arguments: Arguments) -> Reporter:
    from tiling.reporter import Reporter

    return Reporter(sys.stdout, sys.stderr, as_json=arguments.json, quiet=arguments.quiet)


def _complain(text: str) -> None:
    print(f"ERROR {printable(text)}", file=sys.stderr, flush=True)


# Arguments ------------------------------------------------------------------------------------------------

EXIT_CODES = """\
exit codes:
  0    all done; a slide without tissue counts as done
  1    some slides failed, the others are done; or verify found damage
  2    wrong settings, labels or model: nothing was started
  70   a bug in Microtome
  74   the output cannot be written, or the disk is full: run again to resume
  75   another run is writing to the output: run again later
  130  interrupted: run again to resume
"""


def build_parser() -> argparse.ArgumentParser:
    """All commands, each with help, an example and the options of the library function behind it."""
    parser = argparse.ArgumentParser(
        prog="microtome",
        description="Whole slides to tiles, features, predictions and heatmaps.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(function: Callable[[Arguments], int], example: str, *groups: Options) -> argparse.ArgumentParser:
        summary = (function.__doc__ or "").strip().split("\n")[0]
        command = commands.add_parser(
            function.__name__,
            help=summary,
            description=summary,
            epilog=f"example:\n  microtome {function.__name__} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(command=function)
        for group in (*groups, _general):
            group(command)
        return command

    add(info, "slide.svs --json", _slides)
    add(tissue, "slides/ -o results", _slides, _method, _output)
    add(tile, "slides/ -o results --mpp 0.5 --tile-size 256 --stain macenko", _slides, _tiles, _output)
    add(encode, "results --encoder efficientnet_lite0", _results, _encoder, _network, _overwrite)
    add(train, "results --labels labels.csv -m model", _results, _training, _encoder, _model)
    add(predict, "results -m model", _results, _model, _overwrite)
    add(heatmap, "results -m model", _results, _model, _overwrite)
    add(run, "slides/ -m model -o results", _slides, _model, _output, _network)
    command = add(verify, "results --full", _results)
    command.add_argument("--full", action="store_true", help="read every byte and compare its SHA-256")
    command.add_argument("--set-aside", action="store_true", help="move damaged items to OUT/quarantine")
    command = add(doctor, "results")
    command.add_argument("out", metavar="OUT", type=Path, nargs="?", default=Path(), help="where to write")
    command = add(demo, "-o demo-out")
    command.add_argument("-o", "--out", type=Path, default=Path("demo-out"), help="default %(default)s")
    command.add_argument("--slide", type=Path, nargs="+", help="real slides to run the demo's model on")
    return parser


Options = Callable[[argparse.ArgumentParser], None]


def _general(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="results as JSON lines")
    parser.add_argument("--quiet", action="store_true", help="only what failed, no progress")
    parser.add_argument("--debug", action="store_true", help="tracebacks, and all that the libraries say")


def _method(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", choices=["hls", "otsu"], help="how tissue is found (default hls)")


def _tiles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mpp", type=float, help="microns per pixel of a tile (default 0.5)")
    parser.add_argument("--tile-size", dest="size_px", type=int, help="pixels along each side (default 256)")
    parser.add_argument("--overlap", dest="overlap_px", type=int, help="pixels neighbours share (default 0)")
    parser.add_argument("--min-tissue", type=float, help="share of a tile that is tissue (default 0.25)")
    parser.add_argument("--stain", choices=["macenko", "none"], help="normalisation (default macenko)")
    _method(parser)


def _training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", type=Path, required=True, help="CSV: slide_id,label[,patient][,split]")
    parser.add_argument("--head", help="kind of head (default gated_abmil)")
    parser.add_argument("--epochs", type=int, help="passes over all slides (default 30)")
    parser.add_argument("--seed", type=int, help="of weights, order and dropout (default 0)")


def _slides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "slides", metavar="SLIDE", type=Path, nargs="+", help="slide files, or folders of them"
    )
    parser.add_argument(
        "--mpp-override", type=float, help="microns per level-0 pixel, whatever the file says"
    )
    parser.add_argument(
        "--trust-objective", action="store_true", help="without mpp, take the objective's nominal figure"
    )


def _results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder that was given to -o")


def _overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace results made with other settings")


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the results")
    _overwrite(parser)


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", type=Path, required=True, help="folder of the model")


def _encoder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--encoder", default="efficientnet_lite0", help="a known name, or timm:NAME (default %(default)s)"
    )


def _network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, help="file with the encoder's weights (.safetensors, .pth)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default auto)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: the fastest this machine has")


if __name__ == "__main__":
    sys.exit(main())
