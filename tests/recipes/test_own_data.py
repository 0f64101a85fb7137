"""What a user's own folder, list or table can look like: it works, or says what to do, and before
anything is trained."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

import train
from data import decode, tables
from data.subsets import choose

# torchvision's decoders are to give way to torchcodec's one day; recipes then decode with PIL.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding and encoding"),
    pytest.mark.usefixtures("no_pictures"),
]

TINY = ["--arch", "resnet18", "--image-size", "32", "--batch-size", "8", "--epochs", "1",
        "--stage-two", "0", "--warmup-epochs", "0", "--device", "cpu", "--lr", "0.01"]  # fmt: skip


def draw(path, mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 4)).astype(np.uint8)
    Image.fromarray(pixels, "RGBA").convert(mode).save(path)


@pytest.fixture
def flowers(tmp_path):
    """Two classes of four and two images to train on, two each to test on."""
    root = tmp_path / "flowers"
    for part, counts in (("train", (4, 2)), ("val", (2, 2))):
        for name, n in zip(("rose", "tulip"), counts, strict=True):
            for i in range(n):
                draw(root / part / name / f"{i}.png", seed=i)
    return root


def flags(data, tmp_path, *more):
    return ["--data", str(data), *TINY, "--output-dir", str(tmp_path / "out"), *map(str, more)]


def looked_at(data, tmp_path, *more):
    """The class counts of a dry run."""
    return train.build(train.parse(flags(data, tmp_path, *more)))[1].class_counts


def test_a_folder_of_images(flowers, tmp_path):
    results = train.main(flags(flowers, tmp_path, "--lam", 1))
    assert results["class_counts"] == [4, 2] and results["split"] == "test"
    assert len(results["metrics"]["per_class"]) == 2


def test_a_dry_run_trains_nothing(flowers, tmp_path, capsys):
    assert train.main(flags(flowers, tmp_path, "--dry-run")) is None
    assert "6 training samples of 2 classes" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_grey_transparent_spaces_and_umlauts(flowers, tmp_path):
    folder = flowers / "train" / "weiße Röschen"
    for i, (mode, suffix) in enumerate((("L", "jpg"), ("RGBA", "png"), ("P", "png"), ("1", "png"))):
        draw(folder / f"Bild {i} ä.{suffix}", mode)
    _, task, _ = train.build(train.parse(flags(flowers, tmp_path, "--decode", "pil")))
    assert task.classes[-1] == "weiße Röschen" and task.class_counts == [4, 2, 4]
    images, _ = task.train.__getitems__([(0, i) for i in range(10)])
    assert images.shape == (10, 3, 32, 32) and images.dtype is torch.uint8


@pytest.mark.parametrize("decoder", decode.DECODERS)
def test_every_format_by_every_decoder(tmp_path, decoder):
    """torchvision's reads neither BMP nor TIFF, and 16 bits as they are; PIL cuts these off."""
    if decoder == "torchvision" and not decode.HAS_FAST_DECODER:
        pytest.skip("this torchvision has no decoder of its own")
    for mode, suffix in (("RGB", "bmp"), ("RGB", "tiff"), ("L", "pgm"), ("RGB", "webp"),
                         ("LA", "png"), ("CMYK", "jpg")):  # fmt: skip
        draw(tmp_path / f"x.{suffix}", mode)
        image = decode.read_image(tmp_path / f"x.{suffix}", decoder)
        assert image.shape == (3, 40, 48) and image.dtype is torch.uint8
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(grey).save(tmp_path / "x.png")
    image = decode.read_image(tmp_path / "x.png", decoder)
    assert image.dtype is torch.uint8 and image[2].flatten().tolist() == list(range(256))


def wrong(change, message):
    return pytest.param(change, message, id=message[:30])


def move_into(root, inner):
    (root / inner).mkdir(parents=True)
    for part in ("train", "val"):
        (root / part).rename(root / inner / part)


def nested(root):
    (root / "train").rename(root / "set")
    (root / "train").mkdir()
    (root / "set").rename(root / "train" / "set")


def one_class(root):
    for part in ("train", "val"):
        for image in (root / part / "tulip").iterdir():
            image.unlink()
        (root / part / "tulip").rmdir()


def images_in_train(root):
    for name in ("rose", "tulip"):
        for image in (root / "train" / name).iterdir():
            image.rename(root / "train" / f"{name}{image.name}")
        (root / "train" / name).rmdir()


def test_train_itself_is_not_the_folder_to_name(flowers, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"--data {flowers}$"):
        train.main(flags(flowers / "train", tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        wrong(lambda root: move_into(root, "images"), "--data .*flowers/images$"),
        wrong(one_class, "has one class only, rose"),
        wrong(images_in_train, "put each class's files in"),
        wrong(nested, "set holds folders .*move them up, so that"),
        wrong(lambda root: (root / "val").rename(root / "other"), "--validate 0.1 holds out"),
        wrong(lambda root: draw(root / "val" / "lily" / "0.png"), "no such class in the training"),
        wrong(lambda root: (root / "train" / "rose" / "2.png").write_bytes(b"<html>"),
              r"rose/2\.png is not an image that can be read"),
        wrong(lambda root: (root / "val" / "rose" / "1.png").write_bytes(b""), r"rose/1\.png"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_training(flowers, tmp_path, change, message):
    change(flowers)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train.main(flags(flowers, tmp_path))
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_images_by_their_name_are_noted(flowers, tmp_path, capsys):
    (flowers / "train" / "rose" / "list.csv").write_text("0.png")
    (flowers / "train" / "rose" / ".hidden").write_text("")
    for i in range(9):  # nor do they make it a folder of texts
        (flowers / "train" / "tulip" / f"{i}.txt").write_text("a note")
    assert looked_at(flowers, tmp_path) == [4, 2]
    assert "note: 10 files under" in capsys.readouterr().out


def test_files_in_a_folder_of_a_class_are_noted(flowers, tmp_path, capsys):
    for folder in ("more", ".thumbnails"):
        draw(flowers / "train" / "rose" / folder / "deep" / "7.png")
    assert looked_at(flowers, tmp_path) == [4, 2]
    assert "1 file under" in (printed := capsys.readouterr().out) and "rose/more/deep" in printed


@pytest.mark.parametrize("name", ["train/rose/0.png", "flowers.zip"])
def test_an_image_or_an_archive_is_not_what_to_name(flowers, tmp_path, name):
    with pytest.raises(ValueError, match="name the folder that holds it, or what it unpacks to"):
        looked_at(flowers / name, tmp_path)


def test_a_class_without_validation_images_is_noted(flowers, tmp_path, capsys):
    for image in (flowers / "val" / "tulip").iterdir():
        image.unlink()
    assert looked_at(flowers, tmp_path) == [4, 2]
    assert "1 of 2 classes have no test samples: tulip" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more",
    [("--class-balance", "cb"), ("--loss", "ldam"), ("--method", "la"), ("--method", "meta")],
)
def test_a_class_without_training_images_is_named(flowers, tmp_path, more):
    (flowers / "train" / "ghost").mkdir()
    assert looked_at(flowers, tmp_path) == [0, 4, 2]
    with pytest.raises(ValueError, match=" ".join(more) + r" takes .* none of ghost: remove"):
        looked_at(flowers, tmp_path, *more)


@pytest.mark.parametrize("method", ["la-post", "ncm"])
def test_a_class_without_training_images_is_not_predicted(flowers, tmp_path, method):
    (flowers / "train" / "sun").mkdir()
    results = train.main(flags(flowers, tmp_path, "--method", method))
    assert results["metrics"]["overall"] > 0 and results["class_counts"] == [4, 0, 2]


def test_validate_divides_a_folder_that_has_no_test_part(flowers, tmp_path):
    (flowers / "val").rename(flowers / "other")
    assert looked_at(flowers, tmp_path, "--validate", 0.5) == [2, 1]


def test_a_list_with_spaces_in_its_paths(flowers, tmp_path):
    (flowers / "train" / "rose" / "0.png").rename(flowers / "train" / "rose" / "a b.png")
    lines = ["train/rose/a b.png 0", "train/rose/1.png 0", "train/tulip/0.png 1", ""]
    (flowers / "list.txt").write_text("\n".join(lines))
    (flowers / "test.txt").write_text("val/rose/0.png 0\nval/tulip/0.png 1\n")
    more = ("--test", flowers / "test.txt")
    assert looked_at(flowers / "list.txt", tmp_path, *more) == [2, 1]
    (flowers / "test.txt").write_text("val/rose/0.png 2\n")
    with pytest.raises(ValueError, match="label 2 is not in 0 to 1"):
        looked_at(flowers / "list.txt", tmp_path, *more)


def test_a_list_with_whole_paths_and_tabs(flowers, tmp_path):
    lines = [f"{flowers}/train/{name}/0.png\t{c}" for c, name in enumerate(("rose", "tulip"))]
    (flowers / "list.txt").write_text("\n".join(lines * 2))
    assert looked_at(flowers / "list.txt", tmp_path, "--validate", 0.5) == [1, 1]
    (flowers / "list.txt").write_text("train/rose/0.png rose")
    with pytest.raises(ValueError, match="not `path label` with a number from 0"):
        looked_at(flowers / "list.txt", tmp_path)


def test_other_data_do_not_resume(flowers, tmp_path):
    train.main(flags(flowers, tmp_path, "--epochs", 2, "--stop-epoch", 1))
    (flowers / "train" / "tulip" / "1.png").rename(flowers / "train" / "tulip" / "3.png")
    with pytest.raises(ValueError, match="on other data"):
        train.main(flags(flowers, tmp_path, "--epochs", 2, "--resume"))
    (flowers / "train" / "tulip" / "3.png").rename(flowers / "train" / "tulip" / "1.png")
    assert train.main(flags(flowers, tmp_path, "--epochs", 2, "--resume"))


def test_ten_thousand_classes_are_chosen_from_quickly():
    targets = torch.arange(30_000) % 10_000
    chosen = choose(targets, [2] * 10_000, seed=0)
    assert torch.bincount(targets[chosen]).tolist() == [2] * 10_000


# ---- tables

PATIENTS = """age,town,outcome
31,Köln,well
,Köln,well
52,Ulm,ill
47,?,well
60,Ulm,ill
33,Ulm,well
"""


@pytest.fixture
def patients(tmp_path):
    file = tmp_path / "patients.csv"
    file.write_text(PATIENTS, encoding="utf-8")
    return file


def table_flags(file, *more):
    return ["--data", str(file), "--target", "outcome", "--epochs", "2", "--stage-two", "1",
            "--batch-size", "2", "--device", "cpu", "--output-dir", str(file.parent / "out"),
            *map(str, more)]  # fmt: skip


def test_a_table_trains(patients):
    results = train.main(table_flags(patients, "--validate", 0.3))
    assert results["split"] == "validation" and sum(results["class_counts"]) == 4


def test_how_columns_become_inputs(patients):
    table = tables.read_columns(patients)
    del table["outcome"]
    x = tables.Encoder.of(table, patients).encode(table, patients)
    ages = np.array([31, 52, 47, 60, 33])
    assert x.shape == (6, 3) and x[1, 0] == 0  # a missing number is the mean
    assert x[0, 0].item() == pytest.approx((31 - ages.mean()) / ages.std(), rel=1e-5)
    assert x[:, 1:].tolist() == [[1, 0], [1, 0], [0, 1], [0, 0], [0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (PATIENTS, ["--target", "result"], "no column 'result'; its columns are age, town"),
        (PATIENTS, ["--drop", "name"], "--drop: no column 'name'"),
        (PATIENTS, ["--drop", "outcome"], "--drop outcome: this is the --target"),
        (PATIENTS + "4,Ulm,ill\n" * 20 + "old,Ulm,ill\n", [], r"'age' \(numbers but for 'old'\)"),
        (
            "name,code,outcome\n" + "".join(f"n{i},c{i},{i % 2}\n" for i in range(200)),
            [],
            r"'name' \(200 different .*'code' \(200 .* --drop name code",
        ),
        (PATIENTS + "1,2\n", [], "line 8: 2 values under 3 columns"),
        (PATIENTS.replace("60,Ulm,ill", "60,Ulm,"), [], "row 5 has no outcome"),
        ("age,age,outcome\n1,2,ill\n", [], "two columns have one name"),
        ("outcome\nill\nwell\n", [], "no column beside outcome"),
        (PATIENTS, [], "--validate 0.1 holds out"),
        ('age,outcome\n"' + 200_000 * "1", [], "line 2: field larger than"),
        ("name,outcome\n" + "".join(f"n{i},{i % 2}\n" for i in range(200)), [], "--drop name"),
        ("name,outcome\n" + "".join(f"{i}.jpg,{i % 2}\n" for i in range(200)), [], "as a list"),
        (
            "x,outcome\n" + "".join(f"1,{i / 7}\n" for i in range(20)),
            ["--validate", "0.5"],
            "the validation part is empty",
        ),
    ],
)
def test_what_is_wrong_with_a_table(patients, content, more, message):
    patients.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        train.main(table_flags(patients, *more))


@pytest.mark.parametrize("word", ["N/A", "#n/a", "<NA>", "NaT", "-"])
def test_the_words_for_a_missing_value(patients, capsys, word):
    """One of them in a column of numbers made a category of each number."""
    patients.write_text(PATIENTS.replace("\n,Köln", f"\n{word},Köln"), encoding="utf-8")
    train.build(train.parse(table_flags(patients, "--validate", 0.3)))
    assert "inputs: 1 numbers (age); 1 categories (town: 2)\n" in capsys.readouterr().out


def test_plus_and_minus_may_be_the_classes(patients):
    text = PATIENTS.replace("well", "-").replace("ill", "+")
    patients.write_text(text, encoding="utf-8")
    _, task, _ = train.build(train.parse(table_flags(patients, "--validate", 0.3)))
    assert task.classes == ["+", "-"]


def test_a_test_table_has_a_text_where_training_had_numbers(patients, tmp_path):
    (tmp_path / "test.csv").write_text("age,town,outcome\nold,Ulm,ill\n")
    with pytest.raises(ValueError, match=r"test\.csv: column 'age' holds 'old', and numbers"):
        train.main(table_flags(patients, "--test", tmp_path / "test.csv"))


def test_a_class_that_a_preset_keeps_a_part_of(patients):
    words = ["--preset", "imdb-absgd-ce", *table_flags(patients, "--validate", 0.3)]
    with pytest.raises(ValueError, match="this --keep is of --preset imdb-absgd-ce; give your own"):
        train.build(train.parse(words))
    with pytest.raises(ValueError, match=r"'neg:0\.5' .* in \(0, 1\]\)$"):
        train.build(train.parse([*words, "--keep", "neg:0.5"]))
    assert train.build(train.parse([*words, "--keep", "ill:1"]))


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "__index_level_0__"])
def test_row_numbers_are_no_input(patients, capsys, name):
    """In a table sorted by class they give the class away."""
    header, *rows = PATIENTS.splitlines()
    rows = [f"{name},{header}", *(f"{i},{row}" for i, row in enumerate(rows))]
    patients.write_text("\n".join(rows), encoding="utf-8")
    table, _ = tables.with_labels(train.parse(table_flags(patients)), patients)
    assert list(table) == ["age", "town"]
    assert "row numbers" in capsys.readouterr().out


def test_spaces_in_a_header_and_a_name_in_capitals(patients, tmp_path):
    patients.write_text(PATIENTS.replace(",", ", "), encoding="utf-8")
    named = patients.rename(tmp_path / "PATIENTS.CSV")
    assert train.build(train.parse(table_flags(named, "--validate", 0.3)))[1].classes[0] == "ill"


def test_another_encoding_is_said_with_the_file(patients, tmp_path):
    for file in (patients, tmp_path / "list.txt"):
        file.write_bytes("Köln 1".encode("latin-1"))
        with pytest.raises(ValueError, match=f"{file.name} is not UTF-8"):
            train.main(table_flags(file))


def test_a_test_table_lacks_a_column(patients, tmp_path):
    (tmp_path / "test.csv").write_text("age,outcome\n30,ill\n")
    with pytest.raises(ValueError, match=r"test\.csv has no column town"):
        train.main(table_flags(patients, "--test", tmp_path / "test.csv"))


def test_ten_thousand_classes(tmp_path, capsys):
    rows = [f"{i % 7},{i % 10_000}" for i in range(20_000)]
    (tmp_path / "many.csv").write_text("\n".join(["x,outcome", *rows]))
    words = table_flags(tmp_path / "many.csv", "--validate", 0.5, "--batch-size", 5000, "--hidden",
                        4, "--epochs", 1, "--stage-two", 0)  # fmt: skip
    results = train.main(words)
    assert results["class_counts"] == [1] * 10_000 and results["evaluated"] == 10_000
    assert "| …     | 9960 more" in capsys.readouterr().out


def test_parquet_is_read_as_csv_is(patients, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    columns = {"age": [31, None, 52], "outcome": ["well", "ill", "well"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet")
    expected = {"age": ["31", "", "52"], "outcome": ["well", "ill", "well"]}
    assert tables.read_columns(tmp_path / "p.parquet") == expected


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="takes `pip install pyarrow`"):
        train.main(table_flags(tmp_path / "p.parquet"))
    assert not (tmp_path / "out").exists()


# ---- texts


def test_a_folder_of_texts_with_three_classes(tmp_path):
    for part in ("train", "test"):
        for c, word in enumerate(("sun", "rain", "snow")):
            for i in range(4 - c):
                file = tmp_path / "news" / part / word / f"{i}.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"the {word} comes", encoding="utf-8")
    words = ["--data", str(tmp_path / "news"), "--epochs", "1", "--stage-two", "0", "--hidden", "4",
             "--embedding", "4", "--batch-size", "4", "--device", "cpu", "--lam", "2",
             "--output-dir", str(tmp_path / "out")]  # fmt: skip
    results = train.main(words)
    assert results["class_counts"] == [3, 4, 2] or sorted(results["class_counts"]) == [2, 3, 4]
    assert results["config"]["arch"] == "lstm"


def test_texts_without_a_word(tmp_path):
    for c in "ab":
        (tmp_path / "t" / "train" / c).mkdir(parents=True)
        (tmp_path / "t" / "train" / c / "0.txt").write_text("?!")
    with pytest.raises(ValueError, match="train: no word of two letters or more"):
        train.build(train.parse(["--data", str(tmp_path / "t"), "--output-dir", "never"]))
