"""Every async test of the shell runs on asyncio and on trio."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Name both backends: the plugin's own default drops one that is missing."""
    return str(request.param)
