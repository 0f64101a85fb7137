"""compare.py on digits, small: what it trains, reads and says."""

import json

import pytest

from engine import report
from studies import compare, comparison_report

pytestmark = pytest.mark.usefixtures("no_pictures")

SHORT = ["--epochs", "2", "--stage-two", "1", "--lr-milestones", "1"]


def test_methods_side_by_side(tmp_path, monkeypatch, capsys):
    words = ["run", "--methods", "absgd", "meta", "recover", "--select", "--trials", "1",
             "--select-seeds", "7", "--seeds", "0", "1", "--rounds", "2", "--output-dir",
             str(tmp_path), *SHORT]  # fmt: skip
    results = compare.main(words)
    text = (tmp_path / "comparison.md").read_text()
    assert text in capsys.readouterr().out
    for name, runs in results["runs"].items():
        assert [run["config"]["seed"] for run in runs] == [0, 1]
        assert all(run["split"] == "test" for run in runs)
        trials = json.loads((tmp_path / "trials" / f"{name}.json").read_text())
        assert len(trials) == 1 and results["settings"][name] == trials[0]["setting"]
        row = next(line for line in text.splitlines() if f"| {runs[0]['method']} " in line)
        assert report.mean_std([run["metrics"]["few"] for run in runs]) in row
        assert f"{results['cost'][name]['ratio']:.2f} (" in row
    assert "20 held-out balanced samples" in text
    cost = results["cost"]
    assert cost["sgd"]["ratio"] == 1 and cost["sgd"]["memory"] == 0 < cost["recover"]["memory"]
    of_trial = json.loads(next((tmp_path / "trials").glob("sgd/*/results.json")).read_text())
    assert of_trial["split"] == "validation"

    monkeypatch.setattr(compare.runs.train, "main", lambda _: pytest.fail("trained again"))
    again = compare.main(words)
    assert again["runs"] == results["runs"]
    table = compare.main(["table", str(tmp_path / "absgd"), "--output-dir", str(tmp_path / "t")])
    assert "digits, long-tailed, ρ = 20" in table


def test_noise_has_negative_lambdas_and_no_meta():
    args = compare.parse(["run", *compare.DIGITS, "--imbalance", "none", "--label-noise",
                          "uniform:0.4"])  # fmt: skip
    assert "exponentiated" in args.methods and not {"meta", "meta-da"} & set(args.methods)
    assert all(setting["lam"] < 0 for setting in compare.grid(args, "absgd"))


@pytest.mark.parametrize("flags", [("--stage-two", "40"), ("--methods", "exponentiated")])
def test_contradicting_options_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as end:
        compare.parse(["run", *flags])
    assert end.value.code == 2 and "error:" in capsys.readouterr().err


def test_no_finished_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no"):
        comparison_report.find_runs([tmp_path])
