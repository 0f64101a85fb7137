"""paper.py: the commands of every table, a small one from its runs to its text, and figures."""

import pytest

import paper
import train
from engine import report
from studies import curves, tables


@pytest.mark.parametrize("name", [*tables.TABLES, *tables.FIGURES])
def test_every_cell_is_a_command_that_parses(name):
    _, cells = {**tables.TABLES, **tables.FIGURES}[name]
    assert len({(cell.row, cell.column) for cell in cells}) == len(cells)
    for cell in cells:
        for words in (cell.words, tables.small(cell)):
            args = train.parse([*words, "--output-dir", "x", "--device", "cpu"])
            assert args.data == cell.needs or args.data.startswith("covid")


def test_what_was_missing_is_there():
    rows = {cell.row for cell in tables.TABLES["table2"][1]}
    assert {"CB-Focal, META", "CB-LDAM, META"} <= rows
    columns = {cell.column for cell in tables.TABLES["table2"][1] if "META" in cell.row}
    assert {"CIFAR-10-ST 100", "CIFAR-100-ST 10"} <= columns
    assert {cell.column for cell in tables.figure_3()} == {"CIFAR-10", "CIFAR-100"}
    throughout = [cell.words for cell in tables.figure_4() if cell.row == "λ = 1 throughout"]
    assert all("--lam-start" in words and "--eval-train" in words for words in throughout)
    online = [cell.words for cell in tables.TABLES["table5"][1] if cell.column == "online"]
    args = [train.parse([*words, "--output-dir", "x"]) for words in online]
    assert all(a.online and a.class_balance == "none" for a in args)


def test_a_published_number_names_its_source():
    cells = [cell for _, some in tables.TABLES.values() for cell in some]
    published = {(c.row, c.column): c.published for c in cells if c.published}
    assert published["CE, SGD", "CIFAR-10-LT 100"] == (70.36, tables.CAO)
    assert set(published) == set(tables.PUBLISHED)


def test_a_dry_run_prints_commands_and_times_and_trains_nothing(tmp_path, capsys):
    words = ["table1", "--small", "--dry-run", "--seeds", "0", "--only", "CB-LDAM", "CIFAR-10-LT",
             "--device", "cpu", "--output-dir", str(tmp_path)]  # fmt: skip
    assert paper.main(words) is None
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and all(" train.py --preset cifar10-lt-" in line for line in lines[:4])
    assert "in all" in lines[-1] and list(tmp_path.iterdir()) == []


def test_only_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="--only 'CB-Fokal': in none of"):
        paper.main(["table1", "--only", "CB-Fokal", "--output-dir", str(tmp_path)])


def test_a_small_table(small_data_dir, tmp_path, capsys, no_pictures):
    """Two methods that share stage one, one that is not plain, and data that are not at hand."""
    words = ["table2", "--small", "--seeds", "0", "--only", "CB-CE", "CIFAR-10-LT 10",
             "CIFAR-100-LT 10", "--limit", "20", "--epochs", "2", "--stage-two", "1", "--data-dir",
             str(small_data_dir), "--device", "cpu", "--output-dir", str(tmp_path)]  # fmt: skip
    text = paper.main(words)
    assert "note: left out, cifar100" in capsys.readouterr().out
    assert (tmp_path / "table2-small.md").read_text() == text + "\n"
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:1] == "|"}
    for row in ("CB-CE, SGD", "CB-CE, META", "CB-CE, ABSGD"):
        first, second = (cell.strip() for cell in rows[row].split("|")[2:4])
        assert first[0].isdigit() and second == "–"
    assert len(list((tmp_path / "small" / "stage_one").iterdir())) == 2  # SGD's and META's
    assert paper.main(words) == text  # from the finished runs
    assert "done " in capsys.readouterr().out


def test_figure_1(tmp_path):
    paper.main(["figure1", "--output-dir", str(tmp_path)])
    assert (tmp_path / "figure1.png").read_bytes()[:4] == b"\x89PNG"


def test_curves_have_a_panel_a_column_and_both_splits(tmp_path):
    lines = [
        {"split": split, "epoch": epoch, "overall": 0.1 * epoch + shift}
        for epoch in range(3)
        for split, shift in (("test", 0.1), ("train accuracy", 0.3))
    ]
    text = "\n".join(report.json.dumps(line) for line in [{"split": "train", "loss": 1}, *lines])
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "log.jsonl").write_text(text)
    assert curves.read(tmp_path / "0")["train accuracy"] == ([1, 2, 3], [0.3, 0.4, 0.5])
    runs = {("SGD", "CIFAR-10"): [curves.read(tmp_path / seed) for seed in ("0", "1")]}
    curves.plot(runs, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
