"""The benchmark suite runs end to end and leaves nothing out; no time is asserted."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"
sys.path.append(str(BENCH))
from contest import (  # noqa: E402
    Case,
    Contender,
    Result,
    Settings,
    contest,
    measured,
    summary,
)

SETTINGS = Settings(threads=1, seconds=0.01, compiles=False)


def run(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCH / "run.py", *options]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_an_interrupted_run_prints_what_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bench = importlib.import_module("run")
    left = [{"name": "weigh/first", "error": "none"}]

    def next_row(case: Case, settings: Settings) -> dict[str, str]:
        if not left:
            raise KeyboardInterrupt
        return left.pop()

    monkeypatch.setattr(bench, "measured", next_row)
    file = tmp_path / "results.json"
    assert bench.main(["--only", "weigh", "--threads", "1", "--json", str(file)]) == 1
    printed = capsys.readouterr().out
    assert "stopped at weigh/" in printed and "after 1 rows of" in printed
    assert [row["name"] for row in json.loads(file.read_text())["rows"]] == ["weigh/first"]


def test_rows_end_to_end(tmp_path: Path) -> None:
    only = ("--only", "step/1 Mi parameters in 10 ", "loss/LDAM 128×10", "weigh", "search/B = 64")
    only += ("sigmoid/BCE per sample 128×20", "sigmoid/sigmoid focal per element 128×20")
    listed = run("--list", *only).stdout.splitlines()
    assert len(listed) == 13
    file = tmp_path / "results.json"
    done = run("--quick", "--threads", "1", "--json", file, "--build", tmp_path / "b", *only)
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())
    assert [row["name"] for row in results["rows"]] == listed
    assert results["machine"]["threads"] == 1
    for row in results["rows"]:
        assert f"| {row['name'].split('/', 1)[1]} |" in done.stdout
        assert row["best_peer"] in row["peers"] and row["ours"] == "ours"
        assert row["best_peer"] in row["contenders"] and row["rounds"] >= 7
        low, high = row["ratio_interval"]
        assert 0 < low <= high and row["fraction_of_limit"] > 0
        assert row["is_met"] in ((None,) if row["target"] is None else (True, False))
        medians = {name: c["median"] for name, c in row["contenders"].items()}
        assert row["ratio"] == pytest.approx(medians[row["best_peer"]] / medians["ours"])
        assert medians[row["best_peer"]] == min(medians[name] for name in row["peers"])


def test_a_last_layer_without_its_logits(tmp_path: Path) -> None:
    for kind in ("chunked", "eager"):
        command = [sys.executable, BENCH / "bench_linear_loss.py", kind, "64", "500", "16", "1"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if "needs torch.nn.LinearCrossEntropyOptions" in done.stderr:
            pytest.skip("this torch has no chunked linear cross-entropy")
        assert done.returncode == 0, done.stderr
        measured_ = json.loads(done.stdout)
        assert measured_["time"] > 0 and measured_["memory"] >= 0


def test_without_avx512(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    only = ("--only", "weigh/fixed λ, B = 64")
    done = run("--avx2", "--quick", "--json", file, "--build", tmp_path / "b", *only)
    assert done.returncode == 0, done.stderr
    machine = json.loads(file.read_text())["machine"]
    assert machine["cpu_level"] == "3"
    assert "512" not in machine["torch_cpu_capability"]


def test_unknown_rows_are_an_error() -> None:
    done = run("--only", "no such row")
    assert done.returncode != 0
    assert "'no such row'" in done.stderr


def test_a_failing_row_stays_in_the_report() -> None:
    def fail(_: Settings) -> Result:
        raise RuntimeError("as planned")

    row = measured(Case("step/broken", fail), SETTINGS)
    assert row == {"name": "step/broken", "error": "RuntimeError: as planned"}


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    contenders = [Contender(name, lambda name=name: calls.append(name)) for name in "abc"]
    contest(SETTINGS, contenders, flush=lambda: calls.append("flush"))
    turns = "".join(calls[calls.index("flush") :]).replace("flush", "")
    rounds = [turns[i : i + 3] for i in range(0, len(turns), 3)]
    assert {"".join(sorted(names)) for names in rounds} == {"abc"}
    assert len(set(rounds)) > 1  # not always in one order


def test_what_a_row_says() -> None:
    result = Result(
        {"ours": [1.0, 2.0, 3.0], "a": [6.0] * 3, "b": [5.0, 4.0, 5.0], "ours too": [1.0] * 3},
        peers=["a", "b"],
        limit=[1.0, 1.0, 1.0],
    )
    row = summary(Case("g/x", lambda _: result, target=2.5, limit_target=0.6), result)
    assert row["best_peer"] == "b"
    assert row["ratio"] == 2.5
    assert row["fraction_of_limit"] == 0.5
    assert row["is_met"] is False  # the ratio is, the limit is not
    low, high = row["ratio_interval"]
    assert low < 2.5 < high
    reaching = Case("g/x", lambda _: result, target=3.0, reaches=True)
    assert summary(reaching, result)["is_met"] is True
