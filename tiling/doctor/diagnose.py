"""`diagnose`: all that ``microtome doctor`` looks at, in its order."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from tiling.arguments import cut_recipe, selection_files
from tiling.blocks import Progress
from tiling.doctor.disk import disk, probing
from tiling.doctor.finding import Finding
from tiling.doctor.machine import available_memory, machine, memory_limit
from tiling.doctor.plan import plan_cohort
from tiling.doctor.software import software
from tiling.doctor.speed import CUT_SHARE, SECONDS, CutSpeed, EncodeSpeed, cut_speed, synthetic_slide
from tiling.manifest import SlideEntry, find_entries, mpp_by_path
from tiling.recipe import CutRecipe
from tiling.workers.arguments import asking
from tiling.workers.limits import usable_cores
from wsi.arguments import open_slide
from wsi.errors import MicrotomeError, UsageError
from wsi.slide import Slide

TryEncoder = Callable[..., EncodeSpeed]
"""`mil.speed.encode_speed`: this room knows no networks."""

_LONGEST = 3600.0


def diagnose(
    arguments: Namespace,
    devices: Iterable[tuple[str, str]],
    encode_speed: TryEncoder,
    *,
    progress: Progress | None = None,
) -> Iterator[Finding]:
    """Look at the software, the machine, the output's disk; try the speed; reckon what a plan takes.

    Parameters
    ----------
    arguments
        As `tiling.doctor.arguments.add_doctor` has them, and ``encoder``.
    devices
        What there is to encode on, by name.
    encode_speed
        Tries a network.
    progress
        Called as slides of the plan are looked at.

    Raises
    ------
    UsageError
        The settings are wrong, or the manifest is: before anything is looked at.
    """
    seconds = SECONDS if arguments.speed_test is None else arguments.speed_test
    if not 0 <= seconds <= _LONGEST:
        raise UsageError(f"--speed-test is {seconds:g}", action="Give seconds, such as 10, or 0 for none")
    recipe, files = cut_recipe(arguments), selection_files(arguments)
    workers = usable_cores() if arguments.workers is None else arguments.workers
    if workers < 1:
        raise UsageError(f"--workers is {workers}", action="Give 1 or more")
    entries = find_entries(arguments.plan or ())
    files.check(entries)
    opener = partial(open_slide, arguments=arguments, mpps=mpp_by_path(entries))
    yield from software()
    yield from machine()
    yield from (Finding(*row) for row in devices)
    on_disk = list(disk(arguments.out))
    yield from on_disk
    cut = encode = None
    if seconds:
        found = _try_cutting(arguments.out, entries, opener, recipe, CUT_SHARE * seconds)
        cut = found if isinstance(found, CutSpeed) else None
        yield found.finding() if isinstance(found, CutSpeed) else found
        tried = _try_encoding(arguments, encode_speed, recipe, (1 - CUT_SHARE) * seconds)
        encode = tried if isinstance(tried, EncodeSpeed) else None
        yield tried.finding() if isinstance(tried, EncodeSpeed) else tried
    if entries:
        plan = plan_cohort(entries, opener, recipe, files=files, ask=asking(), progress=progress)
        free = next(finding.figures["bytes"] for finding in on_disk if finding.name == "free disk")
        yield from replace(plan, cut=cut, encode=encode, free_bytes=float(free), workers=workers).findings()


def _try_cutting(
    out: Path,
    entries: Mapping[str, SlideEntry],
    opener: Callable[[Path], Slide],
    recipe: CutRecipe,
    seconds: float,
) -> CutSpeed | Finding:
    """By one worker, on the plan's first slide; on a synthetic one where there is none, or it will not do."""
    name, reason = "speed of cutting", "no tile was finished in time"
    with probing(out) as (probe, fault):
        if fault:
            return Finding(name, "not measured", note="the output cannot be written")
        question = partial(
            _cut, opener=opener, recipe=recipe, folder=(probe / "own").absolute(), seconds=seconds
        )
        for _, tried in asking()([*entries.values()][:1], question):
            if isinstance(tried, CutSpeed):
                return tried
            if tried is None:
                return Finding(name, "not measured", note=reason)
            # Of a slide that cannot be cut the plan says what is wrong with it.
        try:
            # The synthetic slide is scanned at 0.25 µm: a plan may ask for finer tiles than that.
            spec = replace(recipe.spec, mpp=max(recipe.spec.mpp, 0.25))
            usual = replace(recipe, spec=spec)
            slide = SlideEntry("synthetic", synthetic_slide(probe))
            found = _cut(slide, opener=Slide, recipe=usual, folder=probe, seconds=seconds)
        except MicrotomeError as error:
            found, reason = None, error.reason
    return found or Finding(name, "not measured", note=reason)


def _cut(
    entry: SlideEntry, *, opener: Callable[[Path], Slide], recipe: CutRecipe, folder: Path, seconds: float
) -> CutSpeed | None:
    deadline = time.monotonic() + seconds
    return cut_speed(entry.path, opener, recipe, folder=folder, workers=1, deadline=deadline)


def _try_encoding(
    arguments: Namespace, encode_speed: TryEncoder, recipe: CutRecipe, seconds: float
) -> EncodeSpeed | Finding:
    known = [amount for amount in (memory_limit(), available_memory()) if amount is not None]
    try:
        return encode_speed(
            arguments.encoder,
            device=arguments.device,
            tile_px=recipe.spec.size_px,
            seconds=seconds,
            memory=min(known, default=None),
        )
    except UsageError:
        raise
    except MicrotomeError as error:
        return Finding("speed of encoding", f"not measured: {error.reason}", error.action or "")
