"""A tiny run, which the tests of a file share; each changes a copy."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aloe.config import PRESETS, CollectConfig
from aloe.loop import run_circle
from aloe.stages import TrustConfig

CONFIG = replace(PRESETS["tiny"], rounds=1, collect=CollectConfig(episodes=3), trust=TrustConfig(episodes=2))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 demonstrations, 3 episodes under a human's eyes, 2 fresh episodes of version 0 with values."""
    return run_circle(CONFIG, tmp_path_factory.mktemp("report") / "run", say=lambda _: None).root


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    def copy(run: Path, name: str = "copy") -> Path:
        shutil.copytree(run, tmp_path / name, ignore=shutil.ignore_patterns("cache", "*.safetensors", "tensorboard"))
        return tmp_path / name

    return copy
