"""compare.py through main(): every method trains, the test set is read once, the table adds up."""

import json
import math

import pytest
import torch

import compare
import comparison
import comparison_report
import report
import step_cost
from methods import METHODS

SHORT = [
    "run", "--epochs", "4", "--stage-two", "2", "--seeds", "0", "1", "--rounds", "2",
    "--trials", "2", "--select-seeds", "7",
]  # fmt: skip


def options_for(directory, *more):
    return [*SHORT, "--output-dir", str(directory), *map(str, more)]


def parse(*more):
    return compare.parse(options_for("-", *more))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All methods on digits, selected and compared."""
    directory = tmp_path_factory.mktemp("compare")
    return directory, compare.main(options_for(directory, "--select"))


def test_every_method_trains_and_is_in_the_table(whole):
    directory, results = whole
    assert set(results["runs"]) == set(METHODS) - {"exponentiated"}
    text = (directory / "comparison.md").read_text()
    for name, runs in results["runs"].items():
        assert [run["config"]["seed"] for run in runs] == [0, 1]
        assert all(run["split"] == "test" and 0 < run["metrics"]["overall"] < 1 for run in runs)
        row = next(line for line in text.splitlines() if f"| {METHODS[name].title} " in line)
        assert report.mean_std([run["metrics"]["few"] for run in runs]) in row
        assert f"{results['cost'][name]['ratio']:.2f} (" in row
        assert ("class counts" in row) == METHODS[name].reads_counts
        assert ("held-out" in row) == METHODS[name].held_out
    assert "20 held-out balanced images" in text
    for picture in directory.rglob("*.png"):
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads((directory / "comparison.json").read_text()) == report.jsonable(results)


def test_every_method_has_as_many_trials(whole):
    directory, results = whole
    for name in results["runs"]:
        trials = json.loads((directory / "trials" / f"{name}.json").read_text())
        assert len(trials) == 2 and all(len(trial["validation"]) == 1 for trial in trials)
        best = max(trials, key=lambda trial: trial["validation"][0])
        assert results["settings"][name] == best["setting"]


def test_select_reads_no_test_set(monkeypatch, tmp_path):
    load = comparison.digits_lt.load_splits

    def without_test_set():
        pool, test = load()
        return pool, comparison.digits_lt.Split(test.images * math.nan, test.targets)

    args = parse("--methods", "absgd", "ncm")
    args.output_dir = tmp_path
    expected = compare.select(args)
    monkeypatch.setattr(comparison.digits_lt, "load_splits", without_test_set)
    args.output_dir = tmp_path / "again"
    assert compare.select(args) == expected


def test_a_killed_comparison_goes_on(whole, monkeypatch):
    directory, results = whole
    (directory / "absgd" / "seed1" / "results.json").unlink()
    trained = []
    train = comparison.train

    def counted(problem, method, *rest):
        trained.append(method.title)
        return train(problem, method, *rest)

    monkeypatch.setattr(comparison, "train", counted)
    again = compare.main(options_for(directory, "--select"))
    assert trained == ["ABSGD"]
    assert again["runs"] == results["runs"]
    with pytest.raises(ValueError, match="other options"):
        compare.main(options_for(directory, "--select", "--batch-size", 32))


def test_methods_that_share_stage_one_begin_with_the_same_model(tmp_path):
    problem = compare.problem(parse(), 0, validate=True)

    def after_stage_one(name, **own):
        setting = {"lr": 0.1, "lr_factor": 0.1, "weight_decay": 1e-4, **own}
        training = comparison.Training(problem, METHODS[name], setting, 0)
        training.stage_one(tmp_path)
        return training.run.model.state_dict()

    sgd = after_stage_one("sgd")
    for name, own in (("absgd", {"lam": 1.0}), ("crt", {}), ("recover", {"lam": 1.0, "a": 0.5})):
        for key, value in after_stage_one(name, **own).items():
            assert torch.equal(value, sgd[key]), (name, key)
    assert len(list(tmp_path.iterdir())) == 1
    for name, own in (("la", {"tau": 1.0}), ("class-sampling", {}), ("meta", {})):
        assert not torch.equal(after_stage_one(name, **own)["fc.weight"], sgd["fc.weight"]), name
    after_stage_one("la-absgd", tau=1.0, lam=2.0)  # SGD's stage one with the same loss
    assert len(list(tmp_path.iterdir())) == 4


def test_post_hoc_methods_finish_the_same_training(tmp_path):
    problem = compare.problem(parse(), 0, validate=True)
    setting = {"lr": 0.1, "lr_factor": 0.1, "weight_decay": 1e-4}

    def hidden(name, **own):
        training = comparison.train(problem, METHODS[name], {**setting, **own}, 0, tmp_path)
        return training.run.model.hidden.weight

    sgd = hidden("sgd")
    for name, own in (("tau-norm", {"tau": 1.0}), ("la-post", {"tau": 1.0}), ("ncm", {})):
        assert torch.equal(hidden(name, **own), sgd), name
    assert len(list(tmp_path.iterdir())) == 2  # stage one, and all of it
    assert not torch.equal(hidden("absgd", lam=0.5), sgd)
    assert not torch.equal(hidden("cb"), sgd)


def test_metas_split_comes_from_the_training_set():
    problem = compare.problem(parse(), 0, validate=False)
    training = comparison.Training(
        problem, METHODS["meta"], {"lr": 0.1, "lr_factor": 1.0, "weight_decay": 0.0}, 0
    )
    assert training.held_out.class_counts() == [2] * 10
    counts = problem.train.class_counts()
    assert training.counts == [n - 2 for n in counts]


def test_momentum_free_methods_take_the_same_total_step(tmp_path):
    problem = compare.problem(parse(), 0, validate=True)
    setting = {"lr": 0.1, "lr_factor": 0.5, "weight_decay": 0.0, "lam": 1.0, "gamma": 0.5}
    comparison.Training(problem, METHODS["sgd"], setting, 0).stage_one(tmp_path)
    training = comparison.Training(problem, METHODS["term"], setting, 0)
    training.stage_one(tmp_path)
    training.enter_stage_two()
    group = training.run.optimizer.param_groups[0]
    assert group["momentum"] == 0 and group["lr"] == pytest.approx(0.1 * 0.5 / (1 - 0.9))
    assert float(training.run.optimizer.lam) == 1.0 and group["gamma"] == 0.5


def test_cost_is_measured_against_sgd():
    problem = compare.problem(parse(), 0, validate=False)
    setting = {"lr": 0.1, "lr_factor": 1.0, "weight_decay": 0.0}
    settings = {"sgd": setting, "meta": setting, "recover": {**setting, "lam": 1.0, "a": 0.5}}
    cost = step_cost.measure(problem, settings, rounds=4)
    assert cost["sgd"]["ratio"] == cost["sgd"]["low"] == cost["sgd"]["high"] == 1
    assert cost["sgd"]["memory"] == 0 and cost["meta"]["memory"] > 0
    assert cost["recover"]["memory"] > 0  # u, v and w_{t−1}


def test_cost_alone(capsys):
    text = compare.main(["cost", "--methods", "recover", "--rounds", "2"])
    assert text in capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == ["SGD", "RECOVER"]


def test_a_diverged_run_is_said_to_be_one(tmp_path):
    of = compare.problem(parse(), 0, validate=False)
    args = parse("--methods", "sgd")
    args.output_dir = tmp_path
    wild = {"lr": 1e30, "lr_factor": 1.0, "weight_decay": 0.0}
    runs = [compare.run_one(args, of, "sgd", wild, 0)]
    assert runs[0]["diverged"]
    cost = {"sgd": {"ratio": 1.0, "low": 1.0, "high": 1.0, "seconds": 0.1, "memory": 0}}
    text = comparison_report.side_by_side({"settings": {}, "cost": cost, "runs": {"sgd": runs}})
    assert "diverged" in text


def test_memory_is_the_peak_of_what_is_alive():
    class Event:
        def __init__(self, at, nbytes, name="[memory]"):
            self.at, self.bytes, self.label = at, nbytes, name

        def name(self):
            return self.label

        def start_ns(self):
            return self.at

        def nbytes(self):
            return self.bytes

    events = [Event(3, 50), Event(1, 100), Event(2, -100), Event(4, 30), Event(5, 9999, "aten::mm")]
    assert step_cost._peak(events) == 100


def test_the_noisy_task_has_negative_lambda_and_no_meta(tmp_path):
    args = parse("--noisy")
    assert "exponentiated" in args.methods and not {"meta", "meta-da"} & set(args.methods)
    assert all(setting["lam"] < 0 for setting in compare.grid(args, "absgd"))
    names = ("--methods", "absgd", "exponentiated", "--seeds", 0)
    results = compare.main(options_for(tmp_path, "--noisy", *names))
    counts = results["runs"]["sgd"][0]["class_counts"]
    assert max(counts) < 1.5 * min(counts)


def test_cifar_images(small_data_dir, tmp_path):
    flags = (
        "--dataset", "cifar10", "--data-dir", small_data_dir, "--arch", "resnet8", "--limit", 24,
        "--imbalance-ratio", 4, "--shrink", 2, "--batch-size", 32, "--device", "cpu",
        "--methods", "absgd", "crt", "meta", "recover", "--seeds", 0,
    )  # fmt: skip
    results = compare.main(options_for(tmp_path, *flags))
    run = results["runs"]["absgd"][0]
    assert run["class_counts"][0] == 24 and run["class_counts"][-1] == 6
    assert results["runs"]["meta"][0]["held_out"] == 30
    validation = compare.problem(parse(*flags), 0, validate=True)
    assert len(validation.judge()) == 10 * round(0.1 * 64)  # balanced
    assert validation.train.class_counts() == run["class_counts"]


def fake_run(folder, accuracy, **config):
    folder.mkdir(parents=True)
    metrics = {"overall": accuracy, "balanced": accuracy, "many": accuracy + 0.1,
               "medium": accuracy, "few": None}  # fmt: skip
    results = {"split": "test", "metrics": metrics, "config": config}
    report.write_json(folder / "results.json", results)


def test_table_of_finished_runs_of_any_recipe(whole, tmp_path, capsys):
    for seed, accuracy in ((0, 0.5), (1, 0.6)):
        for ratio in (10.0, 100.0):
            fake_run(
                tmp_path / f"r{ratio}" / f"s{seed}", accuracy, dataset="cifar10", imbalance="lt",
                imbalance_ratio=ratio, loss="ce", class_balance="drw", optimizer="sgd", seed=seed,
            )  # fmt: skip
    fake_run(tmp_path / "lam", 0.7, dataset="cifar10", imbalance="lt", imbalance_ratio=10.0,
             loss="ce", class_balance="drw", optimizer="absgd", lam=5.0, seed=0)  # fmt: skip
    fake_run(tmp_path / "lam1", 0.8, dataset="cifar10", imbalance="lt", imbalance_ratio=10.0,
             loss="ce", class_balance="drw", optimizer="absgd", lam=1.0, seed=0)  # fmt: skip
    compare.main(["table", str(tmp_path), str(whole[0] / "absgd"), "--output-dir", str(tmp_path)])
    text = (tmp_path / "table.md").read_text()
    assert text.strip() in capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    columns = ["cifar10, long-tailed, ρ = 10", "cifar10, long-tailed, ρ = 100",
               "digits, long-tailed, ρ = 20"]  # fmt: skip
    header = ["", "method", *columns, ""]
    assert header in lines
    assert ["", "CE-DRW, SGD", "55.00 ± 7.07", "55.00 ± 7.07", "", ""] in lines
    assert ["", "CE-DRW, ABSGD (lam 5.0)", "70.00", "", "", ""] in lines
    assert ["", "CE-DRW, ABSGD (lam 1.0)", "80.00", "90.00", "80.00", "–", "1", ""] in lines
    assert (tmp_path / "table.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(FileNotFoundError, match="holds no"):
        comparison_report.find_runs([tmp_path / "empty"])


@pytest.mark.parametrize(
    "flags",
    [
        ("--stage-two", "4"),
        ("--noisy", "--methods", "meta"),
        ("--methods", "exponentiated"),
        ("--noisy", "--dataset", "cifar10"),
    ],
)
def test_contradicting_options_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as end:
        parse(*flags)
    assert end.value.code == 2 and "error:" in capsys.readouterr().err
