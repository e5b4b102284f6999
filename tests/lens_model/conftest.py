"""Fixtures over the cases of `tests.lens_model.cases`."""

from __future__ import annotations

import copy

import pytest

from dsteer_tl.lens_model import load_lens_model
from tests.lens_model.cases import CASES, HAS_HOOKED, Case
from tests.models import random_model


@pytest.fixture(scope="session", params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest) -> Case:
    backend, architecture = request.param
    plain = random_model(architecture)
    lens = load_lens_model(copy.deepcopy(plain), backend=backend)
    return Case(backend, architecture, plain, lens)


@pytest.fixture(
    scope="session",
    params=["bridge", *(["hooked"] if HAS_HOOKED else [])],
)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)
