"""The documentation builds without a warning, its tutorials run, links lead somewhere and words are
spelt."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = ("", "docs", "recipes", "recipes/studies", "recipes/studies/results", "cuda", "tests")
PAGES = sorted(p for folder in (*FOLDERS, "tests/bench") for p in (ROOT / folder).glob("*.md"))


def run(*command: str | Path, **variables: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install .[docs]")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")
    run(sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path)
    api = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    for name in ("AttentionalLoss.weigh", "LamScheduler"):
        assert f'id="torch_absgd.{name}"' in api
    assert "in a package that was built with CUDA" in api  # a summary of two lines
    assert ":math:" not in api and ".. math" not in api


@pytest.mark.parametrize("name", ["weights_over_time", "noisy_labels"])
def test_a_tutorial_leaves_its_picture(name: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install .[docs]")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install .[docs]")
    picture = tmp_path / "picture.png"
    script = DOCS / "tutorials" / f"{name}.py"
    printed = run(sys.executable, script, picture, MPLBACKEND="Agg", OMP_NUM_THREADS="1")
    assert picture.stat().st_size > 10_000
    first, second = (float(n) for n in re.findall(r"\d+\.\d+", printed)[-2:])
    if name == "noisy_labels":  # right and wrong labels, at the end
        assert first > 1.2 and second < 0.3, printed
    else:  # the rarest class, where λ = 1 begins and at the end
        assert first > second > 1.2, printed


@pytest.mark.parametrize("name", ["find_noise", "chest_x_rays", "noisy_tokens"])
def test_a_worked_example(name: str) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install .[docs]")
    printed = run(sys.executable, DOCS / "tutorials" / f"{name}.py", OMP_NUM_THREADS="1")
    numbers = [float(n) for n in re.findall(r"\d+\.\d+", printed)]
    if name == "find_noise":  # per cent of the suspects, where chance finds 20
        assert numbers[0] > 85, printed
    elif name == "chest_x_rays":  # eight findings each, the rarest last
        assert len(numbers) == 17 and min(numbers[:7] + numbers[9:16]) > 0.85, printed
        assert numbers[16] > 0.75, printed
    else:  # mean weight of sentences and of garbage, per cent of the next tokens
        assert numbers[0] > 1.2 and numbers[1] < 0.3 and numbers[2] > 95, printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "#")) and "imports.svg" not in target:
            assert (page.parent / target.split("#")[0]).exists(), f"{page}: {target}"


def test_troubleshooting_quotes_messages_that_the_package_has() -> None:
    package = "".join(path.read_text("utf-8") for path in (ROOT / "python").rglob("*.py"))
    package = re.sub(r'"\s+f?"', "", package)  # strings that stand side by side
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r'^## "(.+)"$', page, re.MULTILINE)
    assert len(messages) >= 3
    assert [message for message in messages if message not in package] == []


def test_words_are_spelt() -> None:
    if shutil.which("codespell") is None:
        pytest.skip("codespell is not installed: pip install .[docs]")
    run("codespell", *PAGES, *sorted((ROOT / "python" / "torch_absgd").glob("*.py")))
