"""train.py on real reviews and on made-up ones; the order of its batches; its network."""

import itertools
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import evaluate
import models
import torch_absgd as ta
import train
from data import text
from data.order import EpochBatches
from engine.run import Run
from runs import assert_same_run, break_off

pytestmark = pytest.mark.usefixtures("no_pictures")  # whole_run has them

SMALL = [
    "--preset", "imdb-absgd-ce",
    "--batch-size", "8", "--epochs", "3", "--stage-two", "2", "--lr-milestones", "2", "--lr", "0.3",
    "--embedding", "8", "--hidden", "8", "--max-length", "40", "--device", "cpu",
]  # fmt: skip


def options_for(reviews, directory, *more):
    return [*SMALL, "--data-dir", str(reviews), "--output-dir", str(directory), *map(str, more)]


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """aclImdb with 60 reviews of each class to train on and 40 to test on, of 1 to 60 words."""
    root = tmp_path_factory.mktemp("reviews")
    rng = np.random.default_rng(0)
    for part, n in (("train", 60), ("test", 40)):
        for name, rating, word in (("neg", 2, "dreadful"), ("pos", 9, "wonderful")):
            folder = root / "aclImdb" / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                words = rng.choice(["film", "actor", "the", word], int(rng.integers(1, 60)))
                (folder / f"{i}_{rating}.txt").write_text(" ".join(words), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def whole_run(reviews, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    train.main(options_for(reviews, directory, "--keep", "neg:0.3"))
    return directory


# ---- what is read


def test_nine_in_ten_negative_training_reviews_go_and_the_test_set_stays(reviews, tmp_path):
    _, task, _ = train.build(train.parse(options_for(reviews, tmp_path)))
    assert task.class_counts == [6, 60] and task.classes == ["neg", "pos"]
    targets = torch.cat([targets for _, targets in task.split("test")])
    assert targets.bincount().tolist() == [40, 40]


def test_the_reviews_that_stay_are_drawn_from_the_seed(reviews, tmp_path):
    def kept(seed):
        _, task, _ = train.build(train.parse(options_for(reviews, tmp_path, "--seed", seed)))
        texts = task.train.texts
        return [w.tolist() for w, y in zip(texts.words, texts.targets, strict=True) if not y]

    assert kept(0) == kept(0)
    assert kept(0) != kept(1)


def test_vocabulary():
    vocabulary = text.Vocabulary(["good good good bad bad", "good film"], max_words=2)
    assert len(vocabulary) == text.SPECIAL + 2
    good, bad = vocabulary.ids["good"], vocabulary.ids["bad"]
    encoded = vocabulary.encode(["Good, BAD film good", "", "?!"], max_length=3)
    assert [words.tolist() for words in encoded] == [
        [good, bad, text.UNKNOWN], [text.UNKNOWN], [text.UNKNOWN],
    ]  # fmt: skip
    assert text.pad(encoded).tolist() == [[good, bad, 1], [1, 0, 0], [1, 0, 0]]


# ---- the order of the batches


@pytest.fixture
def lengths():
    return torch.randint(1, 200, (2000,), generator=torch.Generator().manual_seed(0))


def batches_of(sampler, epoch, first=0):
    sampler.start(epoch, first)
    return [[index for _, index in batch] for batch in sampler]


def test_an_epoch_has_every_review_once_and_hardly_any_padding(lengths):
    def padding(batches):
        padded = sum(len(batch) * lengths[batch].max().item() for batch in batches)
        return padded / lengths.sum().item() - 1

    bucketed = batches_of(text.Bucketed(lengths, 16, seed=0), epoch=0)
    plain = batches_of(EpochBatches(2000, 16, seed=0), epoch=0)
    assert sorted(itertools.chain(*bucketed)) == list(range(2000))
    assert padding(bucketed) < 0.05 < 0.5 < padding(plain)


def test_the_order_is_a_function_of_seed_and_epoch_and_can_begin_anywhere(lengths):
    first, second = text.Bucketed(lengths, 16, seed=0), text.Bucketed(lengths, 16, seed=0)
    whole = batches_of(first, epoch=3)
    batches_of(second, epoch=1)
    assert batches_of(second, epoch=3, first=50) == whole[50:]
    assert batches_of(second, epoch=4) != whole
    assert batches_of(text.Bucketed(lengths, 16, seed=1), epoch=3) != whole
    assert len(first) == len(whole) == 125


def test_a_stream_has_every_review_once_in_all_its_parts(lengths):
    stream = text.Bucketed(lengths[:1003], 16, seed=0, parts=10)
    parts = [batches_of(stream, epoch) for epoch in range(10)]
    assert sorted(itertools.chain(*itertools.chain(*parts))) == list(range(1003))
    for epoch, part in enumerate(parts):
        stream.start(epoch)
        assert len(stream) == len(part)


def mean_log_s(order, losses, gamma):
    """The mean over training of the normaliser's logarithm, the losses being as they are."""
    attention = ta.AttentionalLoss(nn.Identity(), lam=1.0, gamma=gamma)
    values = []
    for batch in order:
        attention.weigh(losses[batch])
        values.append(attention.log_s.item())
    return float(np.mean(values[len(values) // 10 :])), values


def test_batches_of_like_length_do_not_bias_the_normaliser(lengths):
    """Losses that follow the length: sorted batches in sorted order would drag log_s along with
    them; shuffled, they leave it at the logarithm of the mean of exp(L/λ), as a plain random order
    does."""
    losses = lengths / 100.0
    truth = torch.logsumexp(losses.double(), 0).item() - np.log(len(losses))
    bucketed, plain = text.Bucketed(lengths, 16, seed=0), EpochBatches(2000, 16, seed=0)

    def means(sampler):
        order = itertools.chain(*(batches_of(sampler, epoch) for epoch in range(8)))
        return mean_log_s(order, losses, 0.1)

    (by_length, path), (at_random, _) = means(bucketed), means(plain)
    assert at_random == pytest.approx(truth, abs=0.02)
    assert by_length == pytest.approx(truth, abs=0.05)

    batch_means = [
        losses[batch].exp().mean().item()
        for epoch in range(8)
        for batch in batches_of(bucketed, epoch)
    ]
    assert abs(np.corrcoef(batch_means[:-1], batch_means[1:])[0, 1]) < 0.1

    sorted_batches = lengths.argsort().split(16)
    _, dragged = mean_log_s([batch.tolist() for batch in sorted_batches], losses, 0.1)
    assert abs(dragged[-1] - truth) > 0.5 > max(abs(np.array(path[200:]) - truth)) * 0.5


# ---- the network


def test_the_outputs_are_those_of_a_packed_bidirectional_lstm():
    torch.manual_seed(0)
    model = models.BiLSTM(num_words=50, embedding=6, hidden=5).eval()
    reference = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
    for name, parameter in model.forwards.named_parameters():
        getattr(reference, name).data.copy_(parameter)
    for name, parameter in model.backwards.named_parameters():
        getattr(reference, f"{name}_reverse").data.copy_(parameter)

    words = torch.randint(2, 50, (4, 9), dtype=torch.int32)
    length = torch.tensor([9, 1, 5, 7])
    for row, n in enumerate(length.tolist()):
        words[row, n:] = models.PADDING
    packed = nn.utils.rnn.pack_padded_sequence(
        model.embedding(words), length, batch_first=True, enforce_sorted=False
    )
    outputs, _ = nn.utils.rnn.pad_packed_sequence(
        reference(packed)[0], batch_first=True, padding_value=-torch.inf
    )
    torch.testing.assert_close(models.features(model, words), outputs.amax(1))


# ---- whole runs


def test_what_a_run_leaves_and_that_it_learns(whole_run):
    files = {name for name in os.listdir(whole_run) if not name.startswith("events")}
    assert files == {
        "checkpoint.pt", "class_weight.png", "config.json", "lock", "log.jsonl", "per_class.png",
        "results.json",
    }  # fmt: skip
    results = json.loads((whole_run / "results.json").read_text())
    assert results["split"] == "test" and results["class_counts"] == [18, 60]
    records = [json.loads(line) for line in (whole_run / "log.jsonl").read_text().splitlines()]
    assert [float(r["lam"]) for r in records] == [float("inf")] * 2 + [5.0]
    assert records[-1]["loss"] < records[0]["loss"]


@pytest.mark.parametrize("crash_at", [(0, 3), (2, 5)])
def test_a_run_that_broke_off_ends_with_the_same_bits(reviews, whole_run, tmp_path, crash_at):
    flags = options_for(reviews, tmp_path, "--keep", "neg:0.3", "--checkpoint-every", 2, "--resume")
    break_off(train.main, flags, at=crash_at)
    train.main(flags)
    assert_same_run(tmp_path, whole_run)


def test_a_shared_stage_one_gives_the_bits_of_a_run_of_its_own(reviews, whole_run, tmp_path):
    keep = ("--keep", "neg:0.3")
    first, second = tmp_path / "first", tmp_path / "second"
    train.main(options_for(reviews, first, *keep, "--optimizer", "sgd", "--stop-epoch", 2))
    train.main(options_for(reviews, second, *keep, "--stage-one", first / "checkpoint.pt"))
    assert_same_run(second, whole_run)


def test_evaluate_finds_the_same_numbers(reviews, whole_run, tmp_path, capsys):
    words = ["--output-dir", str(tmp_path), "--data-dir", str(reviews), "--device", "cpu"]
    assert evaluate.main([str(whole_run / "checkpoint.pt"), *words]) == []
    printed = capsys.readouterr().out
    assert "the same numbers" in printed and "| pos " in printed
    assert (tmp_path / "confusion.png").stat().st_size > 0


def test_online_every_review_is_trained_on_once(reviews, tmp_path, monkeypatch):
    seen = []
    train_step = Run.train_step

    def counted(run, criterion, inputs, targets):
        seen.append(len(targets))
        train_step(run, criterion, inputs, targets)

    monkeypatch.setattr(Run, "train_step", counted)
    results = train.main(
        options_for(reviews, tmp_path, "--preset", "imdb-online-absgd-focal", "--keep", "neg:0.5")
    )
    assert sum(seen) == sum(results["class_counts"]) == 90


def test_the_preset_has_the_papers_settings(tmp_path):
    args = train.parse(["--preset", "imdb-absgd-ce", "--output-dir", str(tmp_path)])
    assert (args.epochs, args.stage_two, args.lr) == (90, 60, 0.01)
    assert (args.lr_milestones, args.lr_factor) == ([30, 60], 0.01)


def test_missing_and_broken_reviews_are_told_in_one_line(reviews, tmp_path, recipe):
    output, _ = recipe("train.py", *options_for(tmp_path, tmp_path / "out")).communicate()
    assert output.startswith("error: no reviews in") and len(output.splitlines()) == 1

    broken = tmp_path / "aclImdb"
    subprocess.run(["cp", "-r", str(reviews / "aclImdb"), str(broken)], check=True)
    (broken / "train" / "pos" / "0_9.txt").write_bytes(b"caf\xe9")
    output, _ = recipe("train.py", *options_for(broken, tmp_path / "out")).communicate()
    assert output.startswith("error:") and "0_9.txt is not UTF-8" in output


def test_real_reviews(tmp_path):
    """Some hundred of each class: the corpus's own names, encoding and language."""
    root = Path(__file__).resolve().parents[2]
    archive = Path(os.environ.get("ABSGD_DATA", root.parent / "shared" / "data"))
    archive /= "aclImdb.tar.zst"
    if not archive.exists():
        pytest.skip(f"no real reviews: {archive} does not exist")
    subprocess.run(
        ["tar", "--zstd", "-xf", archive, "-C", tmp_path, "--wildcards", "aclImdb/*/*/1??_*.txt"],
        check=True,
    )
    results = train.main(options_for(tmp_path, tmp_path / "out", "--preset", "imdb-small-absgd-ce"))
    negative, positive = results["class_counts"]
    assert negative == round(0.1 * positive) or abs(negative - 0.1 * positive) < 1
    assert results["metrics"]["per_class"][1] > 0.5
