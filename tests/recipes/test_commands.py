"""The commands that an installation brings: the scripts, whatever folder one is in."""

import importlib.util
import sys
from pathlib import Path

import pytest

import train

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


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "error: [Errno 28] No space left on device"),
        (ValueError("Caught in worker\n  trace\nValueError: a.jpg"), "error: ValueError: a.jpg"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "--resume goes on"),
        (KeyboardInterrupt(), "stopped: --resume goes on"),
        (FloatingPointError("the loss is not finite"), "error: the loss is not finite"),
    ],
)
def test_what_breaks_in_the_middle_of_a_night_is_one_line(error, said):
    def broken():
        raise error

    with pytest.raises(SystemExit) as end:
        train.run(broken)
    assert said in end.value.code and "\n" not in end.value.code
