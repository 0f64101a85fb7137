"""The commands that an installation brings: the scripts, whatever folder one is in."""

import importlib.util
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture
def package(monkeypatch):
    """recipes/ under the name that it is installed by."""
    spec = importlib.util.spec_from_file_location("torch_absgd_recipes", RECIPES / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p) != RECIPES])
    return module


@pytest.mark.parametrize(("name", "said"), [("train", "--data WHAT"), ("paper", "--dry-run")])
def test_a_command_is_its_script(package, name, said, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"torch-absgd-{name}", "--help"])
    with pytest.raises(SystemExit) as end:
        getattr(package, name)()
    assert end.value.code == 0 and said in capsys.readouterr().out


def test_what_is_not_installed_is_named(package, monkeypatch):
    monkeypatch.setattr(package, "NEEDED", ("torchvision", "no_such_module"))
    with pytest.raises(SystemExit, match=r"no_such_module not found: pip install .*recipes"):
        package.train()
