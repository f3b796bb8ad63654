from __future__ import annotations

import pytest

from ddpm.run.paths import RunPaths


@pytest.fixture
def paths(tmp_path):
    return RunPaths(tmp_path, "a_run")
