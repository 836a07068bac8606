"""The wheel holds the whole package and its configs, and works from any folder."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of a wheel built from a copy of the sources, without any network."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    for name in ("mentor", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(work), str(source)], check=True, timeout=120)
    (wheel,) = work.glob("mentor-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work / "unpacked")
    return work / "unpacked"


def run_elsewhere(unpacked: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in `folder` with the wheel's package before any other."""
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "mentor").rglob("__init__.py")}
    assert set(listed) == found | {"mentor.configs"}


def test_wheel_holds_all_modules_and_configs(unpacked: Path) -> None:
    def names(folder: Path, pattern: str) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob(pattern)}

    assert names(unpacked / "mentor", "*.py") == names(ROOT / "mentor", "*.py")
    assert names(unpacked / "mentor" / "configs", "*.yaml") == names(ROOT / "configs", "*.yaml") != set()
    assert {path.name for path in unpacked.iterdir()} == {"mentor", next(unpacked.glob("*.dist-info")).name}


def test_wheel_works_from_any_folder(unpacked: Path, tmp_path: Path) -> None:
    where = run_elsewhere(unpacked, tmp_path, "-c", "import mentor; print(mentor.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(unpacked)
    shown = run_elsewhere(unpacked, tmp_path, "-m", "mentor.train", "stage=tokenizer", "--cfg")
    assert shown.returncode == 0, shown.stderr
    assert "root: data/emoji" in shown.stdout
    for module in ("train", "generate", "evaluate"):
        helped = run_elsewhere(unpacked, tmp_path, "-m", f"mentor.{module}", "--help")
        assert helped.returncode == 0, helped.stderr
        assert f"mentor.{module}" in helped.stdout
    assert list(tmp_path.iterdir()) == []
