"""Metrics against counts made by hand; tables; plots are images."""

import json

import numpy as np
import pytest

from engine import report


def test_groups_by_shots_has_its_borders_at_20_and_100():
    counts = [101, 100, 20, 19, 5000, 0]
    assert report.groups_by_shots(counts) == {"many": [0, 4], "medium": [1, 2], "few": [3, 5]}


def test_metrics_against_a_count_by_hand():
    targets = [0] * 6 + [1] * 3 + [2] * 1
    predictions = [0] * 6 + [1, 1, 0] + [0]
    metrics = report.metrics(targets, predictions, [200, 50, 20])
    assert metrics["overall"] == pytest.approx(8 / 10)
    assert metrics["per_class"] == pytest.approx([1, 2 / 3, 0])
    assert metrics["balanced"] == pytest.approx((1 + 2 / 3) / 3)
    assert metrics["many"] == 1
    assert metrics["medium"] == pytest.approx(1 / 3)
    assert metrics["few"] is None
    json.dumps(metrics)


def test_a_class_without_test_samples_is_left_out_of_the_means():
    metrics = report.metrics([0, 1], [0, 0], [200, 200, 50])
    assert metrics["per_class"] == [1, 0, None]
    assert metrics["balanced"] == 0.5
    assert metrics["medium"] is None


def test_mean_std():
    assert report.mean_std([0.5]) == "50.00"
    assert report.mean_std([0.5, 0.6]) == "55.00 ± 7.07"
    assert report.mean_std([0.5, None]) == "–"


def test_markdown_aligns_columns():
    table = report.markdown(["a", "bbb"], [["cc", "d"]])
    assert table.splitlines() == ["| a  | bbb |", "|----|-----|", "| cc | d   |"]


def test_json_is_strict_and_written_whole(tmp_path):
    report.write_json(tmp_path / "r.json", {"lam": float("inf"), "rows": [(1, -float("inf"))]})
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text) == {"lam": "inf", "rows": [[1, "-inf"]]}
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_tsne_writes_an_image(tmp_path):
    features = np.random.default_rng(0).normal(size=(40, 8))
    report.plot_tsne(features, np.arange(40) % 4, tmp_path / "tsne.png", "test")
    assert (tmp_path / "tsne.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_tsne_shows_points_of_all_classes(tmp_path, monkeypatch):
    """Splits are sorted by class: the first 2,000 points of them are two classes."""
    shown = []

    class Plain:
        def __init__(self, **_):
            pass

        def fit_transform(self, features):
            shown.append(features[:, 0])
            return features[:, :2]

    monkeypatch.setattr(report, "TSNE", Plain)
    targets = np.repeat(np.arange(10), 100)
    features = np.stack([targets, targets], 1)
    report.plot_tsne(features, targets, tmp_path / "tsne.png", "test", limit=200)
    assert len(shown[0]) == 200 and set(shown[0]) == set(range(10))


def test_the_table_of_classes_leaves_out_the_middle_of_many():
    metrics = {"per_class": [0.5] * 99 + [None]}
    lines = report.class_table(metrics, list(range(100)), [f"c{i}" for i in range(100)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines.splitlines()]
    assert len(rows) == 2 + 41
    assert (
        rows[2] == ["c99", "99", "–"] and rows[22] == ["…", "60 more", ""] and rows[-1][0] == "c0"
    )
