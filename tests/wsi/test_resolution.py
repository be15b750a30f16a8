"""Where mpp comes from, and what is refused."""

from __future__ import annotations

import pytest

from wsi.resolution import find_resolution, objective_power, resolution_of_power


@pytest.mark.parametrize(
    ("properties", "description", "mpp", "source"),
    [
        (
            {"openslide.vendor": "aperio", "openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"},
            "",
            0.25,
            "vendor property",
        ),
        (
            {"openslide.vendor": "generic-tiff", "openslide.mpp-x": "1.05", "openslide.mpp-y": "1.05"},
            "",
            1.05,
            "TIFF resolution",
        ),
        ({"aperio.MPP": "0,4990"}, "", 0.499, "vendor property"),
        ({}, '<OME><Pixels PhysicalSizeX="0.5" PhysicalSizeY="0.5"/></OME>', 0.5, "vendor property"),
        (
            {},
            '<OME><Pixels PhysicalSizeX="500" PhysicalSizeXUnit="nm" PhysicalSizeY="0.5"/></OME>',
            0.5,
            "vendor property",
        ),
    ],
)
def test_what_the_file_states_is_taken_with_its_source(
    properties: dict[str, str], description: str, mpp: float, source: str
) -> None:
    found = find_resolution(properties, description=description)
    assert found is not None
    assert (found.x, found.y) == pytest.approx((mpp, mpp))
    assert found.source == source


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "350", "0.001", "twenty"])
def test_an_absurd_figure_is_refused_and_not_replaced(value: str) -> None:
    properties = {"openslide.mpp-x": value, "openslide.mpp-y": value, "openslide.objective-power": "20"}
    with pytest.raises(ValueError, match="mpp"):
        find_resolution(properties)


def test_nothing_stated_is_nothing_found_even_with_an_objective() -> None:
    assert find_resolution({"openslide.objective-power": "20"}) is None


@pytest.mark.parametrize(("power", "mpp"), [(40, 0.25), (20, 0.5), (10, 1.0)])
def test_nominal_resolution_of_an_objective(power: float, mpp: float) -> None:
    assert resolution_of_power(power).mpp == pytest.approx(mpp)
    assert objective_power({"openslide.objective-power": str(power)}) == power


def test_a_broken_objective_power_is_none() -> None:
    assert objective_power({"aperio.AppMag": "x"}) is None
    assert objective_power({"aperio.AppMag": "0"}) is None
