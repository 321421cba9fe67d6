"""A small world to draft in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from reprise.tests.kernels.draft_world import DraftWorld, build_world


@pytest.fixture
def make_world(device: torch.device) -> Callable[..., DraftWorld]:
    """Build an empty world."""
    return partial(build_world, device)
