"""Options of the command line that say which encoder, device, labels and model, beside what they set."""

from __future__ import annotations

import contextlib
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiling.arguments import given
from wsi.arguments import WHICH, add_origin, add_resolution, counted_from
from wsi.errors import UsageError

if TYPE_CHECKING:
    from mil.assessment.settings import Wanted
    from mil.checkpoint import Model
    from mil.device import Precision
    from mil.encoder import Encoder
    from mil.study import StudyRecipe
    from tiling.pipeline import Step


def add_encoder(parser: ArgumentParser) -> None:
    """Which encoder."""
    parser.add_argument(
        "--encoder", default="efficientnet_lite0", help="a known name, or timm:NAME (default %(default)s)"
    )


def add_network(parser: ArgumentParser) -> None:
    """Its weights, and what it runs on."""
    parser.add_argument(
        "--weights", type=Path, help="file with the encoder's weights (.safetensors, .pth, .bin)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default auto)")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16"], help="default: the fastest this machine has"
    )
    parser.add_argument(
        "--batch-size", type=int, help="tiles encoded at once (default 8 on a CPU, 128 on a GPU)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the network first: minutes, for long runs"
    )


def add_encoding(parser: ArgumentParser) -> None:
    """`add_network`, what is encoded besides the tiles, and where it is read."""
    add_network(parser)
    add_resolution(parser)
    parser.add_argument("--slides", type=Path, nargs="+", help=f"for tiles without pixels: {WHICH}")
    parser.add_argument(
        "--context-mpp",
        metavar="MPP",
        type=float,
        nargs="+",
        default=[],
        help="also what lies around each tile, at these coarser microns per pixel (needs --slides)",
    )


def add_evaluation(parser: ArgumentParser) -> None:
    """What a model is evaluated on, and how."""
    parser.add_argument(
        "out", metavar="OUT", type=Path, nargs="?", help="features, for --labels, --explain and --mc-dropout"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        help="CSV of another cohort in OUT (default: the slides that training held out)",
    )
    parser.add_argument("-o", "--report", type=Path, help="folder (default MODEL-evaluation)")
    parser.add_argument("--against", metavar="MODEL", type=Path, help="another model, on the same slides")
    parser.add_argument("--explain", action="store_true", help="measure how true explanations are")
    parser.add_argument(
        "--lesions", metavar="FOLDER", type=Path, help="what they should find: SLIDE.png or SLIDE.geojson"
    )
    parser.add_argument("--lesion-class", metavar="LABEL", help="the class that these lesions stand for")
    add_origin(parser)
    parser.add_argument(
        "--alpha", type=float, help="errors that conformal sets may make (default: as trained)"
    )
    parser.add_argument(
        "--threshold", type=float, help="least confidence to confirm a slide (default: as trained)"
    )
    parser.add_argument("--resamples", type=int, help="of patients, for intervals (default 2000)")
    parser.add_argument("--seed", type=int, help="of all draws (default 0)")
    parser.add_argument(
        "--mc-dropout", metavar="PASSES", type=int, help="with dropout left on; 0 for none (default 30)"
    )


def wanted_assessment(arguments: Namespace) -> Wanted:
    """What `add_evaluation` asks for; defaults are the model's own, and those of the settings."""
    from mil.assessment.lesions import Lesions
    from mil.assessment.settings import Wanted
    from mil.evaluation.bootstrap import Resampling
    from wsi.regions import RegionFiles

    if bool(arguments.lesions) != bool(arguments.lesion_class):
        raise UsageError("lesions stand for a class", action="Give --lesions and --lesion-class together")
    lesions = None
    if arguments.lesions:
        lesions = Lesions(RegionFiles(arguments.lesions, counted_from(arguments)), arguments.lesion_class)
    draws = {"count": arguments.resamples, "seed": arguments.seed}
    return Wanted(
        resampling=Resampling(**{name: value for name, value in draws.items() if value is not None}),
        explain=arguments.explain,
        lesions=lesions,
        **given(arguments, "alpha", "threshold", "mc_dropout"),
    )


def add_model(parser: ArgumentParser) -> None:
    """The folder of a trained model."""
    parser.add_argument("-m", "--model", type=Path, required=True, help="folder of the model")


def add_training(parser: ArgumentParser) -> None:
    """What is learnt, and how: all that a `StudyRecipe` holds."""
    parser.add_argument(
        "--labels", type=Path, required=True, help="CSV: slide_id,label[,patient][,site][,split][,fold]"
    )
    parser.add_argument(
        "--features",
        metavar="GLOB",
        nargs="+",
        help="more slides: patterns of outputs, of slides in them, of their store.zarr or its features",
    )
    parser.add_argument("--folds", type=int, help="cross-validation folds; 0 for none (default 5)")
    head = parser.add_argument_group("head")
    head.add_argument("--head", help="kind of head (default gated_abmil)")
    head.add_argument(
        "--set", dest="settings", metavar="NAME=NUMBER", action="append", help="a setting of the head"
    )
    head.add_argument("--adaptor", help="what features pass through before the head (default: none)")
    head.add_argument(
        "--context-mpp",
        dest="contexts",
        metavar="MPP",
        type=float,
        nargs="+",
        help="join features of context at these scales",
    )
    loss = parser.add_argument_group("loss")
    loss.add_argument("--loss", choices=["cross-entropy", "focal"], help="(default cross-entropy)")
    loss.add_argument("--focal-gamma", dest="gamma", type=float, help="of the focal loss (default 2.0)")
    loss.add_argument(
        "--no-class-weights", action="store_true", help="rare classes count no more than common ones"
    )
    _add_optimisation(parser)
    samples = parser.add_argument_group("samples")
    samples.add_argument("--bags-per-step", type=int, help="slides of a step (default 4)")
    samples.add_argument(
        "--tiles-per-bag", type=int, help="tiles of a slide, drawn anew each epoch; 0: all (default 4096)"
    )
    samples.add_argument("--instance-dropout", type=float, help="share of these left out (default 0.0)")
    samples.add_argument(
        "--feature-noise", type=float, help="noise, in each feature's standard deviations (default 0.0)"
    )
    samples.add_argument("--seed", type=int, help="of folds, weights, order and draws (default 0)")
    trust = parser.add_argument_group("trust")
    trust.add_argument("--alpha", type=float, help="share of conformal sets that may miss (default 0.1)")
    trust.add_argument("--threshold", type=float, help="least confidence without review (default 0.8)")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="cpu, cuda, ... (default auto)")
    machine.add_argument("--memory", metavar="GIB", type=float, help="for features that are kept (default 2)")


def _add_optimisation(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("optimisation")
    group.add_argument("--epochs", type=int, help="passes over all slides, at most (default 40)")
    group.add_argument("--learning-rate", type=float, help="of AdamW, at its highest (default 0.0002)")
    group.add_argument("--weight-decay", type=float, help="of AdamW (default 0.0001)")
    group.add_argument("--warm-up", type=float, help="share of steps with a rising rate (default 0.1)")
    group.add_argument(
        "--patience", type=int, help="epochs without a better one; 0: take the last (default 10)"
    )
    group.add_argument(
        "--metric",
        choices=["auroc", "balanced-accuracy", "loss"],
        help="of validation slides, to choose the epoch by (default auroc)",
    )


_OF_TRAINING = (
    "head",
    "adaptor",
    "epochs",
    "learning_rate",
    "weight_decay",
    "warm_up",
    "patience",
    "bags_per_step",
    "tiles_per_bag",
    "instance_dropout",
    "feature_noise",
    "seed",
)
"""Fields of `TrainingRecipe` whose option has their name and their value."""


def study_recipe(arguments: Namespace) -> StudyRecipe:
    """What `add_encoder` and `add_training` say; the defaults are the library's own."""
    from mil.gate import Gate
    from mil.study import StudyRecipe
    from mil.training import TrainingRecipe
    from mil.training.losses import CrossEntropy, Focal
    from mil.training.stopping import Metric

    if arguments.gamma is not None and arguments.loss != "focal":
        raise UsageError("--focal-gamma belongs to another loss", action="Give --loss focal too")
    loss = Focal(**given(arguments, "gamma")) if arguments.loss == "focal" else CrossEntropy()
    training = TrainingRecipe(
        **given(arguments, *_OF_TRAINING),
        settings=settings_of(arguments.settings or ()),
        loss=loss,
        balance_classes=not arguments.no_class_weights,
    )
    if arguments.metric:
        training = replace(training, metric=Metric(arguments.metric))
    return StudyRecipe(
        encoder=arguments.encoder,
        contexts=tuple(arguments.contexts or ()),
        training=training,
        gate=Gate(**given(arguments, "threshold")),
        **given(arguments, "folds", "alpha"),
    )


def training_options(recipe: StudyRecipe) -> list[str]:
    """Options of 'microtome train' that say what a recipe says, all of them, whatever the defaults become."""
    training = recipe.training
    loss = training.loss.as_json()
    said: dict[str, Any] = {name: getattr(training, name) for name in _OF_TRAINING}
    said |= {"metric": training.metric.value, "alpha": recipe.alpha, "threshold": recipe.gate.threshold}
    said |= {"folds": recipe.folds, "encoder": recipe.encoder, "loss": loss["name"]}
    said |= {"focal_gamma": loss.get("gamma")}
    options = []
    for name, value in said.items():
        if value is not None:
            options += [f"--{name.replace('_', '-')}", str(value)]
    for name, number in training.settings.items():
        options += ["--set", f"{name}={+number}"]  # True is 1
    if not training.balance_classes:
        options.append("--no-class-weights")
    if recipe.contexts:
        options += ["--context-mpp", *map(str, recipe.contexts)]
    return options


def memory_bytes(arguments: Namespace) -> int:
    """What ``--memory`` says."""
    from mil.features import BUDGET_BYTES

    if arguments.memory is None:
        return BUDGET_BYTES
    if not 0 <= arguments.memory < 1e6:
        raise UsageError(f"--memory is {arguments.memory:g} GiB", action="Give 0 or more")
    return int(arguments.memory * 2**30)


def settings_of(texts: Sequence[str]) -> dict[str, int | float]:
    """A head's settings, from ``NAME=NUMBER``."""
    pairs = [_setting(text) for text in texts]
    settings = dict(pairs)
    if len(settings) < len(pairs):
        raise UsageError("--set names a setting twice", action="Give each once")
    return settings


def _setting(text: str) -> tuple[str, int | float]:
    name, _, number = text.partition("=")
    for read in (int, float):
        with contextlib.suppress(ValueError):
            return name.strip(), read(number)
    raise UsageError(f"--set is {text!r}", action="Give NAME=NUMBER, such as --set dropout=0.5")


def encoding(
    arguments: Namespace,
    name: str,
    *,
    contexts: Sequence[float] = (),
    expected: Mapping[str, Any] | None = None,
) -> list[Step]:
    """The steps that encode tiles and `contexts` as `add_network` says.

    `expected` is the identity that a model needs.
    """
    from mil.device import Precision
    from mil.steps import Encoding, encode_steps

    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UsageError(f"--batch-size is {arguments.batch_size}", action="Give 1 or more")
    precision = Precision(arguments.precision) if arguments.precision else None
    encoding = Encoding(
        name,
        partial(_load_encoder, arguments, name, precision, expected),
        precision=precision,
        batch_size=arguments.batch_size,
    )
    return encode_steps(encoding, contexts=contexts)


def _load_encoder(
    arguments: Namespace, name: str, precision: Precision | None, expected: Mapping[str, Any] | None
) -> Encoder:
    from mil.device import choose_device, require_precision
    from mil.encoder import require_identity
    from mil.encoders import load_encoder
    from mil.networks.compiled import compile_encoder

    device = choose_device(arguments.device)
    if precision is not None:
        require_precision(precision, device)
    encoder = load_encoder(name, weights=arguments.weights, device=str(device))
    if expected is not None:
        require_identity(encoder, expected)
    return compile_encoder(encoder) if arguments.compile else encoder


def scoring(arguments: Namespace) -> tuple[Model, list[Step]]:
    """The model in ``arguments.model``, and the steps from a slide to its scores: as its own slides were."""
    from mil.checkpoint import load_model
    from mil.steps import predict_step
    from tiling.arguments import with_pixels
    from tiling.qc import tile_steps
    from tiling.recipe import recipe_from_json

    model, ensemble = load_model(arguments.model)
    recipe = with_pixels(recipe_from_json(model.features.as_json()), arguments)
    encoder, scales = model.features.encoder, model.features.contexts
    encoded = encoding(arguments, encoder["name"], contexts=scales, expected=encoder)
    return model, [*tile_steps(recipe), *encoded, predict_step(model, ensemble)]
