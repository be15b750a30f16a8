"""Options of the command line for learning from few examples, beside what they set."""

from __future__ import annotations

import unicodedata
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mil.arguments import settings_of
from tiling.arguments import given
from wsi.arguments import add_origin, counted_from
from wsi.errors import UsageError

if TYPE_CHECKING:
    from mil.fewshot.choosing import Choice
    from mil.fewshot.evaluating import FewshotSettings
    from mil.fewshot.recipe import MetaRecipe
    from mil.fewshot.report import Source
    from tiling.marks import Marks
    from tiling.store import TileStore


def _add_labelled(parser: ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder that was given to -o")
    group = parser.add_argument_group("labels")
    group.add_argument(
        "--annotations",
        metavar="FOLDER",
        type=Path,
        help="SLIDE.geojson of each slide: tasks are of tiles, classes are those of the regions",
    )
    group.add_argument(
        "--labels", type=Path, help="CSV: slide_id,label[,patient][,site][,split]; tasks are of slides"
    )
    group.add_argument("--tiles", action="store_true", help="each tile has its slide's label: tasks of tiles")
    _add_rename(group)
    add_origin(group)


def add_training(parser: ArgumentParser) -> None:
    """What is meta-learnt, from what, and how: all that a `MetaRecipe` holds."""
    _add_labelled(parser)
    parser.add_argument(
        "--context-mpp",
        dest="contexts",
        metavar="MPP",
        type=float,
        nargs="+",
        default=[],
        help="join features of context at these scales",
    )
    _add_meta(parser)
    classes = parser.add_argument_group("classes")
    classes.add_argument(
        "--novel", metavar="CLASS", nargs="+", default=[], help="kept away, to judge the learners by later"
    )
    classes.add_argument(
        "--validation",
        metavar="CLASS",
        nargs="+",
        default=[],
        help="decide when to stop (default: a third by lot; below six classes a third of the patients)",
    )
    learners = parser.add_argument_group("learners")
    learners.add_argument(
        "--learners",
        dest="kinds",
        nargs="+",
        metavar="NAME",
        help="some of scratch pretrained maml fomaml anil reptile proto_maml (default: all)",
    )
    learners.add_argument("--head", help="kind of head (default: mean for tiles, gated_abmil for slides)")
    learners.add_argument(
        "--set", dest="settings", metavar="NAME=NUMBER", action="append", help="a setting of the head"
    )
    learners.add_argument(
        "--components", type=int, help="principal axes of the features that learners see (default 128)"
    )
    tasks = parser.add_argument_group("tasks")
    _add_tasks(tasks)
    inner = parser.add_argument_group("inner loop")
    inner.add_argument("--inner-steps", type=int, help="gradient steps on a support (default 5)")
    inner.add_argument("--inner-rate", type=float, help="their rate, at first (default 0.01)")
    inner.add_argument("--learn-rates", action="store_true", help="learn a rate for each layer (Meta-SGD)")
    outer = parser.add_argument_group("outer loop")
    outer.add_argument("--iterations", type=int, help="steps, at most (default 1000)")
    outer.add_argument("--tasks-per-step", type=int, help="tasks of a step (default 8)")
    outer.add_argument("--outer-rate", type=float, help="of Adam (default 0.001)")
    outer.add_argument(
        "--alignment", type=float, help="weight of drawing sites together by contrast (default 0.0)"
    )
    outer.add_argument("--look-every", type=int, help="steps between looks at validation (default 20)")
    outer.add_argument("--patience", type=int, help="looks without a better one, then stop (default 10)")
    outer.add_argument("--validation-tasks", type=int, help="tasks that a look is at (default 100)")
    outer.add_argument("--seed", type=int, help="of weights and tasks (default 0)")
    _add_device(parser)


def add_evaluation(parser: ArgumentParser) -> None:
    """Which learners are judged, and on which tasks."""
    _add_labelled(parser)
    _add_meta(parser)
    parser.add_argument("-o", "--report", type=Path, help="folder (default META-evaluation)")
    tasks = parser.add_argument_group("tasks")
    tasks.add_argument(
        "--classes", metavar="CLASS", nargs="+", help="of these (default: those that META never saw)"
    )
    _add_tasks(tasks)
    tasks.add_argument("--episodes", type=int, help="tasks for each number of shots (default 600)")
    tasks.add_argument("--seed", type=int, help="of the tasks (default 0)")
    _add_device(parser)


def _add_meta(parser: ArgumentParser) -> None:
    parser.add_argument("-m", "--model", metavar="META", type=Path, required=True, help="folder of learners")


def add_adapting(parser: ArgumentParser) -> None:
    """What is learnt from, by which learners, and what a user may set."""
    _add_meta(parser)
    parser.add_argument(
        "--annotations",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="QuPath's GeoJSON, named after its slide: learn to tell tiles",
    )
    parser.add_argument(
        "--slide", metavar="ID", help="the slide of the one annotation file, if named otherwise"
    )
    parser.add_argument(
        "--labels", type=Path, help="CSV of a few slides: learn to tell slides, and score all"
    )
    parser.add_argument(
        "--every-slide", action="store_true", help="score all slides of OUT, not only those that are marked"
    )
    _add_rename(parser)
    add_origin(parser)
    parser.add_argument(
        "--name", default="adapted", help="of the new model, OUT/models/NAME (default adapted)"
    )
    parser.add_argument(
        "--learner", metavar="NAME", help="the way to learn (default: the best by cross-validation)"
    )
    parser.add_argument("--most", type=int, help="tiles of a class to learn from, at most (default 100)")
    parser.add_argument("--threshold", type=float, help="least confidence without review (default 0.8)")
    parser.add_argument("--seed", type=int, help="of the draw among more tiles (default 0)")
    _add_device(parser)


def _add_rename(parser: Any) -> None:
    parser.add_argument(
        "--rename",
        metavar="OLD=NEW",
        action="append",
        default=[],
        help="a class of annotations that is to be called otherwise",
    )


def _add_tasks(group: Any) -> None:
    group.add_argument("--ways", type=int, help="classes of a task, or as many as there are (default 4)")
    group.add_argument("--shots", type=int, nargs="+", help="support of a class (default 1 5 10)")
    group.add_argument("--queries", type=int, help="queries of a class (default 10)")
    group.add_argument("--within-site", action="store_true", help="support and query of one site")


def _add_device(parser: ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default auto)")


# What they say -------------------------------------------------------------------------------------------


def labelled_to_train(arguments: Namespace) -> Source:
    """The labelled bags that `add_training` names; of a table those that are for training."""
    contexts = tuple(arguments.contexts)
    return _labelled(arguments, encoder=arguments.encoder, contexts=contexts, to_train=True)


def labelled_to_judge(arguments: Namespace) -> Source:
    """The labelled bags that `add_evaluation` names, all of them, by META's encoder and at its scales."""
    from mil.fewshot.meta import load_meta

    meta, _ = load_meta(arguments.model)
    encoder, contexts = str(meta.features.encoder["name"]), meta.features.contexts
    return _labelled(arguments, encoder=encoder, contexts=contexts, to_train=False)


def _labelled(arguments: Namespace, *, encoder: str, contexts: tuple[float, ...], to_train: bool) -> Source:
    from mil.encoder import folder_name
    from mil.features import feature_items
    from mil.fewshot.report import Source
    from mil.fewshot.sources import labelled_tile_pool, slide_pool, tile_pool
    from mil.labels import LabelTable, Split, read_labels
    from mil.training.sources import find_stores
    from wsi.regions import RegionFiles

    if not (arguments.annotations or arguments.labels):
        raise UsageError("nothing is labelled", action="Give --annotations, --labels or both")
    if arguments.tiles and (arguments.annotations or not arguments.labels):
        raise UsageError("--tiles belongs to labels of slides", action="Give it with --labels alone")
    if arguments.rename and not arguments.annotations:
        raise UsageError("--rename belongs to --annotations", action="Change the names in the table")
    table = read_labels(arguments.labels, to_train=False) if arguments.labels else None
    if table and to_train:
        table = LabelTable(table.path, table.of(Split.TRAIN))
    stores = find_stores(arguments.out, (), encoder=encoder)
    if arguments.annotations:
        files = RegionFiles(arguments.annotations, counted_from(arguments))
        rename = renamed(arguments.rename)
        pool, features = tile_pool(
            stores, files, encoder=encoder, contexts=contexts, table=table, rename=rename
        )
        _require_renamed(rename, [path for name in pool.slide_ids if (path := files.find(name))])
    else:
        assert table is not None
        make = labelled_tile_pool if arguments.tiles else slide_pool
        pool, features = make(stores, table, encoder=encoder, contexts=contexts)
    items = ("tiles", *feature_items(folder_name(encoder), contexts))
    return Source(pool, features, {name: stores[name].inputs(*items) for name in pool.slide_ids})


def meta_recipe(arguments: Namespace, *, of_tiles: bool) -> MetaRecipe:
    """What `add_training` says; the defaults are the library's own."""
    from mil.fewshot.recipe import MetaRecipe

    names = ("head", "components", "ways", "queries", "inner_steps", "inner_rate", "iterations")
    said = given(
        arguments,
        *(*names, "tasks_per_step", "outer_rate", "alignment"),
        *("look_every", "patience", "validation_tasks", "seed"),
    )
    for name in ("kinds", "shots"):
        if getattr(arguments, name) is not None:
            said[name] = tuple(getattr(arguments, name))
    if not of_tiles:
        said = {"head": "gated_abmil", "settings": {"hidden": 128, "attention": 64}, "queries": 2} | said
    settings = settings_of(arguments.settings or ())
    if arguments.head:  # the settings of another head say nothing of this one
        said["settings"] = settings
    elif settings:
        said["settings"] = {**MetaRecipe(**said).settings, **settings}
    return MetaRecipe(**said, within_site=arguments.within_site, learn_rates=arguments.learn_rates)


def fewshot_settings(arguments: Namespace, *, of_tiles: bool) -> FewshotSettings:
    """What `add_evaluation` says; the defaults are the library's own."""
    from mil.fewshot.evaluating import FewshotSettings

    said = given(arguments, "ways", "queries", "episodes", "seed")
    if not of_tiles:
        said = {"queries": 2} | said
    if arguments.shots is not None:
        said["shots"] = tuple(arguments.shots)
    return FewshotSettings(**said, within_site=arguments.within_site)


def adapted(arguments: Namespace) -> tuple[Path, Choice, dict[str, Path]]:
    """Adapt as `add_adapting` says: the model's folder, how it was chosen, and the slides to score."""
    from mil.checkpoint import check_model_name
    from mil.device import choose_device
    from mil.fewshot.adapting import AdaptRecipe, adapt_to_slides, adapt_to_tiles
    from mil.gate import Gate
    from mil.labels import read_labels
    from mil.training.sources import find_stores
    from tiling.output import Output, item_path

    check_model_name(arguments.name)
    _check_marks(arguments)
    gate = Gate(**given(arguments, "threshold"))
    recipe = AdaptRecipe(**given(arguments, "learner", "most", "seed"), gate=gate)
    output = Output(arguments.out)
    folder, device = output.models / arguments.name, choose_device(arguments.device)
    every = output.slides_with_tiles()
    if not every:
        raise UsageError("holds no tiles", path=arguments.out, action="Run 'microtome tile' first")
    common = {"meta": arguments.model, "folder": folder, "recipe": recipe, "device": device}
    with output.lock():
        if arguments.annotations:
            marked = marked_slides(arguments)
            found = adapt_to_tiles(marked, **common, overwrite=arguments.overwrite)
            slides = {store.slide_id: store.folder for store, _ in marked}
        else:
            table, stores = read_labels(arguments.labels), find_stores(output.root, (), encoder="")
            found = adapt_to_slides(stores, table, **common, overwrite=arguments.overwrite)
            slides = every
    if arguments.overwrite:  # what the model before this one said of other slides is not to stay
        said = (name for name, there in every.items() if item_path(there, f"scores/{folder.name}").is_dir())
        slides |= {name: every[name] for name in said}
    return folder, found.choice, every if arguments.every_slide else slides


def _check_marks(arguments: Namespace) -> None:
    """Refuse nothing, or two things, to learn from, and options that would say nothing."""
    if bool(arguments.annotations) == bool(arguments.labels):
        raise UsageError(
            f"{'two things' if arguments.labels else 'nothing'} to learn from",
            action="Give --annotations or --labels",
        )
    if arguments.labels:
        for name in ("slide", "rename", "most"):
            if getattr(arguments, name):
                raise UsageError(f"--{name} belongs to --annotations", action="Leave it out")


def marked_slides(arguments: Namespace) -> list[tuple[TileStore, Marks]]:
    """The slides of `--annotations`, each with what was marked on it."""
    from tiling.marks import read_marks
    from tiling.output import Output
    from tiling.store import TileStore

    output, rename = Output(arguments.out), renamed(arguments.rename)
    there = output.slides_with_tiles()
    found: list[tuple[TileStore, Marks]] = []
    for path in arguments.annotations:
        store = TileStore(output, _slide_of(path, there, arguments))
        if any(store.slide_id == other.slide_id for other, _ in found):
            raise UsageError(
                f"a second file of slide {store.slide_id!r}", path=path, action="Give one file a slide"
            )
        found.append((store, read_marks(path, store, rename=rename, origin=counted_from(arguments))))
    _require_renamed(rename, arguments.annotations)
    return found


def _require_renamed(rename: Mapping[str, str], paths: Sequence[Path]) -> None:
    """Refuse to rename a class that no file has: it is misspelt, and what was meant would stay."""
    from wsi.annotations import read_annotations

    if not rename:
        return
    names = {spelled(one.name or "") for path in paths for one in read_annotations(path)}
    if unknown := sorted(rename.keys() - names):
        there = ", ".join(map(repr, sorted(names - {""})))
        raise UsageError(
            f"--rename {unknown[0]!r}: no annotation is of this class", action=f"The files have {there}"
        )


def _slide_of(path: Path, there: Mapping[str, Path], arguments: Namespace) -> str:
    """Which slide a file is of: the one that is named, or whose name it bears, or the only one."""
    alone = len(arguments.annotations) == 1
    if arguments.slide and not alone:
        raise UsageError("--slide is for one annotation file", action="Name the files after their slides")
    name = path.name.removesuffix(".gz").removesuffix(".geojson").removesuffix(".json")
    name = spelled(arguments.slide or name)
    if name in there:
        return name
    if alone and not arguments.slide and len(there) == 1:
        return next(iter(there))
    raise UsageError(
        f"there is no slide {name!r} with tiles in {arguments.out}",
        path=path,
        action="Name the file after its slide, or say which it is with --slide",
    )


def renamed(pairs: Sequence[str]) -> dict[str, str]:
    """Old names and new ones, from ``OLD=NEW``."""
    found = {}
    for pair in pairs:
        old, sign, new = pair.partition("=")
        if not (sign and old.strip() and new.strip()):
            raise UsageError(f"--rename is {pair!r}", action="Give OLD=NEW, such as --rename Tumour=Tumor")
        found[spelled(old)] = spelled(new)
    return found


def spelled(name: str) -> str:
    """Without blanks around it, and accents in one form, as `tiling.marks` takes names."""
    return unicodedata.normalize("NFC", name.strip())
