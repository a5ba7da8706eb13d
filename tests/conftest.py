"""What every test shares: both event loops, and property tests that a slow machine does not fail."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Time limits belong to pytest-timeout; a deadline per example only measures how busy the machine is. In CI the
# examples are the same every time, so that a red build means the change; at a desk they are new each time.
settings.register_profile("desk", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "desk")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)
