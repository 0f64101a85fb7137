"""The sweep: its table, its sharing of stage one, and going on after an interruption."""

import json

import pytest

import cifar_lt
import report
import sweep

FLAGS = [
    "--arch", "resnet8", "--imbalance-ratio", "8", "--batch-size", "32", "--epochs", "3",
    "--stage-two", "2", "--warmup-epochs", "1", "--lr-milestones", "2", "--lr", "0.05",
    "--limit", "24", "--device", "cpu",
]  # fmt: skip


def test_a_sweep_is_interrupted_and_goes_on(small_data_dir, tmp_path, monkeypatch):
    flags = [
        *FLAGS, "--losses", "ce", "cb-ldam", "--seeds", "0", "1",
        "--data-dir", str(small_data_dir), "--output-dir", str(tmp_path),
    ]  # fmt: skip
    trained = []
    main = cifar_lt.main

    def main_and_note(argv):
        args = cifar_lt.parse(argv)
        trained.append(args.output_dir.relative_to(tmp_path).as_posix())
        if len(trained) == 5:
            raise KeyboardInterrupt
        return main(argv)

    monkeypatch.setattr(cifar_lt, "main", main_and_note)
    with pytest.raises(KeyboardInterrupt):
        sweep.main(flags)
    assert trained == [
        "stage_one/ce-seed0", "sgd-ce/seed0", "stage_one/ce-seed1", "sgd-ce/seed1",
        "absgd-ce/seed0",
    ]  # fmt: skip
    text = sweep.main(flags)
    assert trained[5:] == [
        "absgd-ce/seed0", "absgd-ce/seed1",
        "stage_one/ldam-seed0", "sgd-cb-ldam/seed0", "stage_one/ldam-seed1", "sgd-cb-ldam/seed1",
        "absgd-cb-ldam/seed0", "absgd-cb-ldam/seed1",
    ]  # fmt: skip

    done = len(trained)
    assert sweep.main(flags) == text and len(trained) == done, "finished runs are not repeated"
    assert (tmp_path / "table.md").read_text() == text + "\n"
    assert "test accuracy (%), mean ± deviation over seeds 0, 1" in text

    saved = json.loads((tmp_path / "results.json").read_text())
    assert [(row["loss"], row["optimizer"]) for row in saved] == [
        ("ce", "sgd"), ("ce", "absgd"), ("cb-ldam", "sgd"), ("cb-ldam", "absgd"),
    ]  # fmt: skip
    cells = [report.mean_std([run["metrics"]["overall"] for run in row["runs"]]) for row in saved]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith(("| CE ", "| CB-LDAM "))
    ]
    assert rows[:2] == [["CE", *cells[:2]], ["CB-LDAM", *cells[2:]]]

    with pytest.raises(ValueError, match="weight_decay"):
        sweep.main([*flags, "--weight-decay", "0.1"])


def test_a_run_of_a_sweep_is_the_run_alone(small_data_dir, tmp_path):
    flags = [*FLAGS, "--data-dir", str(small_data_dir)]
    chosen = ["--losses", "cb-ce", "--optimizers", "absgd", "--seeds", "3"]
    sweep.main([*flags, *chosen, "--output-dir", str(tmp_path / "sweep")])
    alone = ["--loss", "ce", "--class-balance", "drw", "--seed", "3"]
    cifar_lt.main([*flags, *alone, "--output-dir", str(tmp_path / "alone")])
    for name in ("results.json", "log.jsonl"):
        swept = tmp_path / "sweep" / "absgd-cb-ce" / "seed3" / name
        assert swept.read_bytes() == (tmp_path / "alone" / name).read_bytes()
