"""Names of places in a model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.errors import HookError
from dsteer_tl.sites import all_sites, check_site, depth_order, layer_of, resid_post


def test_all_sites() -> None:
    assert all_sites(3) == ("resid_post.0", "resid_post.1", "resid_post.2", "h")


@settings(deadline=None, max_examples=30)
@given(layer=st.integers(0, 500))
def test_layer_of_undoes_resid_post(layer: int) -> None:
    assert layer_of(resid_post(layer)) == layer


def test_h_has_no_layer() -> None:
    assert layer_of("h") is None


@pytest.mark.parametrize(
    "site",
    [
        *["", "H", " h", "h\n", "resid_post", "resid_post.", "resid_post.-1", "resid_post.1.5"],
        *["resid_mid.0", "resid_post.01", "resid_post.1\n", "resid_post.١"],
    ],
)
def test_other_strings_are_refused(site: str) -> None:
    with pytest.raises(HookError, match=r"expected 'h' or 'resid_post\.<layer>'") as caught:
        layer_of(site)
    assert repr(site) in str(caught.value)


def test_check_site() -> None:
    assert check_site("h", 1, "m") == "h"
    assert check_site("resid_post.4", 5, "m") == "resid_post.4"
    with pytest.raises(
        HookError, match=r"'resid_post\.5' does not exist in my model: .*last is 'resid_post\.4'"
    ):
        check_site("resid_post.5", 5, "my model")


@settings(deadline=None, max_examples=30)
@given(order=st.permutations(all_sites(12)))
def test_depth_order_sorts(order: list[str]) -> None:
    assert tuple(sorted(order, key=depth_order)) == all_sites(12)
