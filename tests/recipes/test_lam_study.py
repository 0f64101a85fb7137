"""lam_study.py end to end, small; and λ on the command line."""

import argparse
import json

import pytest

import cifar_lt
import lam_option
import lam_study
import report
import torch_absgd as ta


@pytest.fixture
def short(monkeypatch):
    tasks = {
        name: {**task, "epochs": 3, "stage_two": 1} if task["dataset"] == "digits" else task
        for name, task in lam_study.TASKS.items()
    }
    monkeypatch.setattr(lam_study, "TASKS", tasks)


FEW = ["--lams", "10", "5", "1", "0.1", "--targets", "0.6", "0.3", "--rates", "1"]


def test_the_study_of_digits(short, tmp_path, monkeypatch, capsys):
    flags = ["--seeds", "0", "1", *FEW, "--output-dir", str(tmp_path)]
    results = lam_study.main(flags)
    assert json.loads((tmp_path / "digits.json").read_text()) == report.jsonable(results)
    assert (tmp_path / "digits.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    text = (tmp_path / "digits.md").read_text()
    assert text in capsys.readouterr().out
    assert list(results) == ["long-tailed", "long-tailed, lr kept", "noisy"]
    for task, result in results.items():
        noisy, runs = task == "noisy", result["runs"]
        sign = -1 if noisy else 1
        end = ":noisy" if noisy else ""
        lams = ["inf", *(f"{sign * lam:g}" for lam in (10, 5, 1, 0.1)),
                f"ess:0.6{end}", f"ess:0.3{end}", f"ess:0.6{end}:rate=1"]  # fmt: skip
        assert result["lams"] == lams
        for class_balance in ("none",) if noisy else ("none", "drw"):
            for lam in lams:
                some = lam_study.of(runs, lam, class_balance)
                assert [run["seed"] for run in some] == [0, 1]
                assert report.mean_std([run["metrics"]["overall"] for run in some]) in text
                for run in some:
                    assert [e["epoch"] for e in run["epochs"]] == [1, 2]
                    assert all(0 <= e["effective"] <= 1 + 1e-9 for e in run["epochs"])
                    if lam.startswith("ess"):
                        assert all(sign * e["lam"] > 0 for e in run["epochs"])
        assert {run["split"] for run in runs} == {"test", "validation"}

    monkeypatch.setattr(lam_study, "train", None)
    again = lam_study.main(flags)
    assert report.jsonable(again) == report.jsonable(results), "finished runs are read"


def test_the_grid_is_chosen_on_the_validation_split():
    def run(lam, split, accuracy):
        metrics = {name: accuracy for name in ("overall", "balanced", "many", "medium", "few")}
        return {
            "setting": {"lam": lam, "class_balance": "none", "lr": 0.1, "lr_factor": 0.1,
                        "weight_decay": 0.0},
            "split": split, "metrics": metrics, "class_counts": [5, 2], "epochs": [],
        }  # fmt: skip

    accuracies = {"10": (0.5, 0.6), "5": (0.9, 0.4), "1": (0.7, 0.99), "0.1": (0.1, 0.3)}
    runs = [run("inf", "test", 0.5), run("ess:0.6", "test", 0.5)]
    for lam, (validation, test) in accuracies.items():
        runs += [run(lam, "validation", validation), run(lam, "test", test)]
    args = argparse.Namespace(seeds=[0], lams=[10, 5, 1, 0.1], targets=[0.6], rates=[])
    systems = lam_study.summarise(runs, "long-tailed", args)["systems"]
    assert systems["λ = 5, chosen by grid"] == "5"  # not 1, the best on the test set
    assert systems["λ = 0.1, the grid's worst"] == "0.1"


def test_the_choice_does_not_read_the_test_set(short, tmp_path, monkeypatch):
    read = []
    training = lam_study.Training

    class Watched(training):
        def metrics(self):
            read.append((self.problem.split, self.setting["lam"]))
            return training.metrics(self)

    monkeypatch.setattr(lam_study, "Training", Watched)
    lam_study.main(["--seeds", "0", *FEW, "--output-dir", str(tmp_path)])
    chosen_on = [lam for split, lam in read if split == "validation"]
    assert set(chosen_on) == {"0.1", "1", "5", "10", "-0.1", "-1", "-5", "-10"}
    assert len(chosen_on) == 3 * len(lam_study.GRID)  # of each task


def test_the_study_of_cifar(small_data_dir, tmp_path):
    results = lam_study.main(
        ["--data", "cifar10", "--data-dir", str(small_data_dir), "--imbalance-ratio", "4",
         "--limit", "24", "--epochs", "2", "--stage-two", "1", "--seeds", "0", *FEW,
         "--batch-size", "32", "--device", "cpu", "--output-dir", str(tmp_path)]
    )  # fmt: skip
    (result,) = results.values()
    assert result["class_counts"][0] == 4 * result["class_counts"][-1]
    assert (tmp_path / "cifar10.png").exists() and (tmp_path / "cifar10.md").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--lams", "1"], "--lams must hold the grid"), (["--targets", "0.5"], "must hold 0.6")],
)
def test_the_study_refuses(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        lam_study.main([*flags, "--output-dir", str(tmp_path)])
    assert message in capsys.readouterr().err


# ---- λ on the command line

GOOD = {
    "5": 5.0,
    "-2.5": -2.5,
    "inf": float("inf"),
    "1e-2": 0.01,
    "ess:0.6": ta.EffectiveSampleSize(0.6),
    "ess:0.6:noisy": ta.EffectiveSampleSize(0.6, noisy=True),
    "kl:0.5": ta.KLRadius(0.5),
    "kl:0.5:noisy:rate=0.3": ta.KLRadius(0.5, noisy=True, rate=0.3),
    "kl:0.5:rate=0.3:noisy": ta.KLRadius(0.5, noisy=True, rate=0.3),
}
BAD = {
    "0": "not 0", "nan": "not 0 and not NaN", "five": "a number, ess:FRACTION",
    "": "a number, ess:FRACTION", "ess": "ess:FRACTION", "ess:": "ess:FRACTION",
    "ess:0": r"fraction value: 0.0 \(must be in \(0, 1\)\)",
    "ess:1": r"fraction value: 1.0", "ess:nan": "fraction value: nan",
    "kl:-1": "radius value: -1.0", "kl:inf": "radius value: inf",
    "ess:0.6:loud": "ess:0.6:loud", "ess:0.6:noisy:noisy": "with :noisy",
    "ess:0.6:noisy=1": "with :noisy", "ess:0.6:rate": "with :rate=R", "ess:0.6:rate=": ":rate=R",
    "ess:0.6:rate=2": "rate value: 2.0", "ess:0.6:rate=x": ":rate=R", "tv:0.5": "kl:RADIUS",
}  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_lam_is_read(text):
    args = cifar_lt.parse(["--output-dir", "x", "--lam", text, "--lam-start", text])
    for value in (args.lam, args.lam_start):
        assert lam_option.parse(value) == GOOD[text]
        assert json.loads(json.dumps(report.jsonable(value))) is not None
    assert lam_option.parse(json.loads(json.dumps(str(args.lam)))) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_lam_is_refused(text, capsys):
    with pytest.raises(ValueError, match=BAD[text]):
        lam_option.parse(text)
    with pytest.raises(SystemExit):
        cifar_lt.parse(["--output-dir", "x", "--lam", text])
    assert "argument --lam: Invalid" in capsys.readouterr().err


def test_damping_needs_numbers(capsys):
    for flags in (["--lam", "ess:0.6"], ["--lam-start", "kl:0.5"]):
        with pytest.raises(SystemExit):
            cifar_lt.parse(["--output-dir", "x", "--lam-over", "5", *flags])
        assert "--lam-over damps a number" in capsys.readouterr().err


@pytest.mark.parametrize("lam_start", ["inf", "ess:0.8"])
def test_a_run_logs_the_lam_that_it_finds_and_resumes(small_data_dir, tmp_path, lam_start):
    flags = [
        "--arch", "resnet8", "--imbalance-ratio", "8", "--batch-size", "32", "--epochs", "3",
        "--stage-two", "1", "--warmup-epochs", "1", "--lr-milestones", "1", "--lr", "0.05",
        "--limit", "24", "--device", "cpu", "--lam", "ess:0.5", "--lam-start", lam_start,
        "--data-dir", str(small_data_dir),
    ]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    cifar_lt.main([*flags, "--output-dir", str(whole)])
    cifar_lt.main([*flags, "--output-dir", str(parts), "--stop-epoch", "2"])
    cifar_lt.main([*flags, "--output-dir", str(parts), "--resume"])
    assert (whole / "log.jsonl").read_bytes() == (parts / "log.jsonl").read_bytes()
    assert json.loads((whole / "config.json").read_text())["lam"] == "ess:0.5"
    lams = [json.loads(line)["lam"] for line in (whole / "log.jsonl").read_text().splitlines()]
    assert (lams[0] == "inf") == (lam_start == "inf")
    assert all(0 < float(lam) < float("inf") for lam in lams[1:]) and lams[1] != lams[2]
