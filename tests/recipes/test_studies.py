"""compare.py and lam_study.py on digits, small: what they train, read and say."""

import json

import pytest

from engine import report
from studies import compare, comparison_report, lam_study

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


def test_lam_found_against_lam_as_a_number(tmp_path, monkeypatch, capsys):
    tasks = {name: [*words, *SHORT] for name, words in lam_study.TASKS.items()}
    monkeypatch.setattr(lam_study, "TASKS", tasks)
    words = ["--tasks", "long-tailed", "noisy", "--seeds", "0", "--lams", "10", "5", "1", "0.1",
             "--targets", "0.6", "--rates", "1", "--output-dir", str(tmp_path)]  # fmt: skip
    results = lam_study.main(words)
    text = (tmp_path / "lam_study.md").read_text()
    assert text in capsys.readouterr().out
    assert (tmp_path / "lam_study.png").read_bytes()[:4] == b"\x89PNG"
    assert results["noisy"]["lams"] == [
        "inf", "-10", "-5", "-1", "-0.1", "ess:0.6:noisy", "ess:0.6:noisy:rate=1"
    ]  # fmt: skip
    for result in results.values():
        for lam in result["lams"]:
            (run,) = lam_study.of(result["runs"], lam)
            assert [e["epoch"] for e in run["epochs"]] == [1]
            assert report.mean_std([run["metrics"]["overall"]]) in text


def test_the_choice_of_lam_does_not_read_the_test_set():
    def run(lam, split, accuracy):
        metrics = dict.fromkeys(("overall", "balanced", "many", "medium", "few"), accuracy)
        return {"setting": {"lam": lam, "class_balance": "none"}, "split": split,
                "metrics": metrics}  # fmt: skip

    accuracies = {"10": (0.5, 0.6), "5": (0.9, 0.4), "1": (0.7, 0.99), "0.1": (0.1, 0.3)}
    found = [run("inf", "test", 0.5), run("ess:0.6", "test", 0.5)]
    for lam, (validation, test) in accuracies.items():
        found += [run(lam, "validation", validation), run(lam, "test", test)]
    args = lam_study.parse(["--lams", "10", "5", "1", "0.1", "--targets", "0.6", "--seeds", "0"])
    systems = lam_study.summarise(found, "long-tailed", args)["systems"]
    assert systems["λ = 5, chosen by grid"] == "5"  # not 1, the best on the test set
    assert systems["λ = 0.1, the grid's worst"] == "0.1"
