"""ImageNet-LT, Places-LT and iNaturalist on small trees laid out as the real ones are.

The Places-LT lists, and those of ImageNet-LT and iNaturalist that are at hand, are the published
ones; the images are made on the spot.
"""

import json
import lzma
import math
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import evaluate
import models
import train
from data import decode, image_files, lists
from data.order import EpochBatches
from engine import checkpoint
from runs import assert_same_run, break_off, records_of

# torchvision's decoders are to give way to torchcodec's one day; recipes then decode with PIL.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding and encoding"),
    pytest.mark.usefixtures("no_pictures"),
]

SHARED = Path(os.environ.get("ABSGD_DATA", Path(__file__).resolve().parents[3] / "shared/data"))

# Both stages of a decoupled setting, on images that a test can afford.
TINY = [
    "--arch", "resnet18", "--pretrained", "none", "--image-size", "32", "--batch-size", "8",
    "--epochs", "2", "--stage-two", "1", "--lr", "0.02", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="session")
def published():
    """The lines of a published list: published("Places_LT_train.txt")."""

    def read(name):
        if (SHARED / name).exists():
            return (SHARED / name).read_text().splitlines()
        archive = SHARED / "lists" / f"{name}.xz"
        if not archive.exists():
            pytest.skip(f"no published list: neither {SHARED / name} nor {archive} exists")
        return lzma.open(archive, "rt").read().splitlines()

    return read


def draw(path, label, rng):
    """A JPEG whose colour tells the label, of a size of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = rng.integers(36, 60, 2)
    pixels = rng.integers(0, 80, (height, width, 3))
    pixels[:, :, label % 3] += 40 * (label % 4) + 50
    Image.fromarray(pixels.astype(np.uint8)).save(path, format="JPEG")


def make_tree(root, lists):
    """Draws the images of {list file: its lines} and writes the lists."""
    rng = np.random.default_rng(0)
    for file, lines in lists.items():
        (root / file).write_text("\n".join(lines) + "\n")
        for line in lines:
            name, label = line.rsplit(" ", 1)
            draw(root / name, int(label), rng)
    return root


def some_of(lines, counts):
    """The first counts[c] lines of each label c that ``counts`` names."""
    left = dict(counts)
    chosen = []
    for line in lines:
        label = int(line.rsplit(" ", 1)[1])
        if left.get(label, 0) > 0:
            left[label] -= 1
            chosen.append(line)
    return chosen


@pytest.fixture(scope="session")
def places(published, tmp_path_factory):
    """A part of the published lists: 24 images of class 0, 6 of class 100, 2 of class 364."""
    root = tmp_path_factory.mktemp("places365_standard")
    train = some_of(published("Places_LT_train.txt"), {0: 24, 100: 6, 364: 2})
    test = some_of(published("Places_LT_test.txt"), {0: 5, 100: 5, 364: 5})
    return make_tree(root, {"Places_LT_train.txt": train, "Places_LT_test.txt": test})


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    wnids = {0: "n01440764", 1: "n01443537", 999: "n15075141"}
    train = [
        f"train/{wnids[c]}/{wnids[c]}_{i}.JPEG {c}"
        for c, n in ((0, 24), (1, 6), (999, 2))
        for i in range(n)
    ]
    test = [
        f"val/{wnids[c]}/ILSVRC2012_val_{1000 * c + i:08d}.JPEG {c}"
        for c in wnids
        for i in range(5)
    ]
    lists = {"ImageNet_LT_train.txt": train, "ImageNet_LT_test.txt": test}
    return make_tree(tmp_path_factory.mktemp("imagenet"), lists)


@pytest.fixture(scope="session")
def species(published, tmp_path_factory):
    """Images named as the published validation list names them, split by that format's lists."""
    lines = published("iNaturalist18_val.txt")
    labels = list(dict.fromkeys(int(line.rsplit(" ", 1)[1]) for line in lines))[:8]
    chosen = some_of(lines, dict.fromkeys(labels, 3))
    lists = {"iNaturalist18_train.txt": chosen[::2], "iNaturalist18_val.txt": chosen[1::2]}
    return make_tree(tmp_path_factory.mktemp("inaturalist"), lists)


def as_competition(lines):
    """The lines of a list as the competition's JSON says the same."""
    pairs = [line.rsplit(" ", 1) for line in lines]
    return {
        "info": {"year": 2018},
        "images": [{"id": i, "file_name": name, "width": 40} for i, (name, _) in enumerate(pairs)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": int(c)} for i, (_, c) in enumerate(pairs)
        ],
    }


def flags(data, directory, *more, preset="places-lt-b-absgd"):
    where = ["--data-dir", str(data), "--output-dir", str(directory)]
    return ["--preset", preset, *TINY, *where, *map(str, more)]


@pytest.fixture(scope="module")
def whole_run(places, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    train.main(flags(places, directory))
    return directory


# ---- the published lists


@pytest.mark.parametrize(
    ("name", "num_classes", "images", "largest", "smallest"),
    [
        ("Places_LT_train.txt", 365, 62_500, 4_980, 5),
        ("Places_LT_test.txt", 365, 36_500, 100, 100),
        ("ImageNet_LT_val.txt", 1000, 20_000, 20, 20),
        ("iNaturalist18_val.txt", 8142, 24_426, 3, 3),
    ],
)
def test_published_lists(published, tmp_path, name, num_classes, images, largest, smallest):
    (tmp_path / name).write_text("\n".join(published(name)))
    names, labels = lists.parse_list(tmp_path / name, num_classes)
    counts = np.bincount(labels, minlength=num_classes)
    assert len(names) == len(set(names)) == images
    assert (counts.max(), counts.min()) == (largest, smallest)


def test_a_dry_run_over_the_full_places_lists(published, tmp_path, capsys):
    """62,500 images to train on and 36,500 to test on, by their published names."""
    one = tmp_path / "one.jpg"
    draw(one, 0, np.random.default_rng(0))
    folders = set()
    for name in ("Places_LT_train.txt", "Places_LT_test.txt"):
        lines = published(name)
        (tmp_path / name).write_text("\n".join(lines))
        for line in lines:
            path = f"{tmp_path}/{line.rpartition(' ')[0]}"
            folder = os.path.dirname(path)
            if folder not in folders:
                os.makedirs(folder, exist_ok=True)
                folders.add(folder)
            os.symlink(one, path)
    assert train.main(flags(tmp_path, tmp_path / "out", "--dry-run")) is None
    printed = capsys.readouterr().out
    assert "62500 training samples of 365 classes, per class 4980 to 5; 36500 to judge" in printed


# ---- both stages, of every recipe


def test_places_in_two_stages(whole_run):
    """Stage one leaves the lower layers alone, stage two all but the classifier; batch norm too."""
    files = {name for name in os.listdir(whole_run) if not name.startswith("events")}
    assert files == {
        "checkpoint.pt", "class_weight.png", "config.json", "lock", "log.jsonl", "per_class.png",
        "results.json",
    }  # fmt: skip
    results = json.loads((whole_run / "results.json").read_text())
    counts = results["class_counts"]
    assert len(counts) == 365 and (counts[0], counts[100], counts[364]) == (24, 6, 2)
    assert set(results["metrics"]) >= {"overall", "many", "medium", "few"}
    records = records_of(whole_run)
    assert [float(r["lam"]) for r in records] == [math.inf, 5.0]
    assert [r["lr"] for r in records] == [0.02, 0.02]  # the cosine begins anew


def test_which_layers_each_stage_trains(places, whole_run, tmp_path):
    args = flags(places, tmp_path)
    torch.manual_seed(0)
    network, *_ = train.build(train.parse(args))
    at_start = {name: value.clone() for name, value in network.state_dict().items()}
    train.main([*args, "--stop-epoch", "1"])
    after_one = checkpoint.load(tmp_path / "checkpoint.pt")["model"]
    after_two = checkpoint.load(whole_run / "checkpoint.pt")["model"]

    def changed(before, after):
        return {n.split(".")[0] for n in before if not torch.equal(before[n], after[n])}

    assert changed(at_start, after_one) == {"layer4", "fc"}
    assert changed(after_one, after_two) == {"fc"}


def test_imagenet_in_two_stages(imagenet, tmp_path):
    results = train.main(flags(imagenet, tmp_path, "--profile", preset="imagenet-lt-a-absgd"))
    assert results["class_counts"][:2] == [24, 6] and results["class_counts"][999] == 2
    assert results["metrics"]["per_class"][2] is None


def test_inaturalist_in_two_stages(species, tmp_path):
    results = train.main(flags(species, tmp_path, preset="inaturalist-resnet50-absgd"))
    assert sum(results["class_counts"]) == 12 and len(results["class_counts"]) == 8142
    assert float(records_of(tmp_path)[-1]["lam"]) == 10


def test_inaturalist_in_all_its_forms_is_the_same(species, tmp_path):
    """The competition's folder with lists or JSON, and torchvision's name for it."""
    found = []
    for form in ("lists", "json", "torchvision"):
        root = tmp_path / form
        root.mkdir()
        folder = "2018" if form == "torchvision" else "train_val2018"
        (root / folder).symlink_to(species / "train_val2018")
        for part in ("train", "val"):
            lines = (species / f"iNaturalist18_{part}.txt").read_text().splitlines()
            if form == "lists":
                (root / f"iNaturalist18_{part}.txt").write_text("\n".join(lines))
            else:
                (root / f"{part}2018.json").write_text(json.dumps(as_competition(lines)))
        args = train.parse(flags(root, tmp_path / "out", preset="inaturalist-resnet50-absgd"))
        found.append(train.build(args)[1].fingerprint)
    assert found[0] == found[1] == found[2]


def test_clothing1m_on_its_two_lists(tmp_path):
    lists = {
        f"Clothing1M_{part}.txt": [
            f"images/{c % 10}/{i:02d}/{c}{i},{part}.jpg {c}" for c in (0, 1, 13) for i in range(n)
        ]
        for part, n in (("train", 8), ("test", 2))
    }
    results = train.main(flags(make_tree(tmp_path, lists), tmp_path / "out",
                               preset="clothing1m-absgd"))  # fmt: skip
    assert len(results["class_counts"]) == 14 and sum(results["class_counts"]) == 24
    assert [float(r["lam"]) for r in records_of(tmp_path / "out")] == [math.inf, -5]


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("imagenet-lt-a", ("resnet50", 90, 60, None, None, 0.2, 512, 5e-4)),
        ("imagenet-lt-b", ("resnet50", 180, 90, None, ["fc"], 0.2, 512, 5e-4)),
        ("places-lt-a", ("resnet152", 30, 0, None, None, 0.01, 512, 5e-4)),
        ("places-lt-b", ("resnet152", 120, 90, ["layer4", "fc"], ["fc"], 0.01, 512, 5e-4)),
        ("inaturalist-resnet50", ("resnet50", 230, 200, None, ["layer4", "fc"], 0.2, 512, 1e-4)),
    ],
)
def test_presets_have_the_papers_settings(preset, expected, tmp_path):
    args = train.parse(["--preset", f"{preset}-absgd", "--output-dir", str(tmp_path)])
    assert expected == (
        args.arch, args.epochs, args.stage_two, args.layers, args.stage_two_layers, args.lr,
        args.batch_size, args.weight_decay,
    )  # fmt: skip
    assert (args.pretrained == "imagenet") == (not preset.startswith("imagenet"))
    assert args.colour_jitter == (0.0 if preset.startswith("inaturalist") else 0.4)


# ---- a run can break off at any time


def test_a_run_that_broke_off_ends_with_the_same_bits(places, whole_run, tmp_path):
    args = flags(places, tmp_path, "--checkpoint-every", 1, "--resume")
    break_off(train.main, args, at=(1, 2))
    train.main([*args, "--workers", "2"])  # nor do workers change a bit
    assert_same_run(tmp_path, whole_run)


def test_a_full_disk_costs_no_checkpoint(places, whole_run, tmp_path, recipe):
    """The limit on file size makes writing fail as a full disk does, with part of it written."""
    args = flags(places, tmp_path)
    train.main([*args, "--stop-epoch", "1"])
    before = (tmp_path / "checkpoint.pt").read_bytes()
    limit = len(before) // 2

    process = recipe(
        "train.py", *args, "--resume",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert output.splitlines()[-1].startswith("error:") and "File too large" in output
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))

    train.main([*args, "--resume"])
    assert_same_run(tmp_path, whole_run)


# ---- what can be wrong with the data


def broken_places(places, tmp_path):
    """A copy of the tree, its images linked, to break something in."""
    root = tmp_path / "data"
    root.mkdir()
    for name in ("train", "val"):
        (root / name).symlink_to(places / name)
    for file in places.glob("*.txt"):
        (root / file.name).write_text(file.read_text())
    return root


def test_a_missing_folder(tmp_path, recipe):
    output, _ = recipe("train.py", *flags(tmp_path / "no", tmp_path / "out")).communicate()
    assert output.startswith(f"error: no such list: {tmp_path / 'no' / 'Places_LT_train.txt'}; ")
    assert output.count("\n") == 1 and "README.md" in output


def test_inaturalist_without_images_or_without_a_split(species, tmp_path):
    args = train.parse(flags(tmp_path, tmp_path / "out", preset="inaturalist-resnet50-sgd"))
    with pytest.raises(FileNotFoundError, match="neither train_val2018/ nor 2018/"):
        train.build(args)
    (tmp_path / "2018").symlink_to(species / "train_val2018")
    with pytest.raises(FileNotFoundError, match=r"neither train2018.json nor iNaturalist18_train"):
        train.build(args)


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("train/airfield/none.jpg 0", FileNotFoundError, "none.jpg, which is not there"),
        ("train/nowhere/00000001.jpg 0", FileNotFoundError, "nowhere"),
        ("train/airfield/00004851.jpg 365", ValueError, "line 33: label 365 is not in 0 to 364"),
        ("train/airfield/00004851.jpg -1", ValueError, "line 33: label -1 is not in 0 to 364"),
        ("train/airfield/00004851.jpg", ValueError, "line 33: not `path label`"),
        ("train/airfield/00004851.jpg one", ValueError, "line 33: not `path label`"),
    ],
)
def test_a_list_that_is_wrong(places, tmp_path, line, error, message):
    root = broken_places(places, tmp_path)
    with open(root / "Places_LT_train.txt", "a") as file:
        file.write(line + "\n")
    with pytest.raises(error, match=message):
        train.main(flags(root, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["annotations"][0].update(category_id=8142), "8142 of train_val"),
        (lambda content: content["annotations"][0].update(image_id=99), "KeyError"),
        (lambda content: content.pop("images"), "KeyError"),
    ],
)
def test_a_competition_file_that_is_wrong(species, tmp_path, change, message):
    lines = (species / "iNaturalist18_train.txt").read_text().splitlines()
    content = as_competition(lines)
    change(content)
    file = tmp_path / "train2018.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        image_files.read_competition(file, species / "train_val2018")
    file.write_text("{")
    with pytest.raises(ValueError, match="not the competition's JSON"):
        image_files.read_competition(file, species / "train_val2018")


def with_broken_image(places, tmp_path, content):
    """The tree with ``content`` for one of the images of the first epoch's last batch."""
    root = broken_places(places, tmp_path)
    lines = (root / "Places_LT_train.txt").read_text().splitlines()
    *_, last = EpochBatches(len(lines), batch_size=8, seed=0)
    lines[last[0][1]] = "broken.jpg 0"
    (root / "broken.jpg").write_bytes(content)
    (root / "Places_LT_train.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("decoder", ["torchvision", "pil"])
@pytest.mark.parametrize("kind", ["empty", "text", "cut"])
def test_an_image_that_cannot_be_decoded(places, tmp_path, decoder, kind):
    whole = next((places / "train" / "airfield").iterdir()).read_bytes()
    content = {"empty": b"", "text": b"not an image", "cut": whole[: len(whole) // 2]}[kind]
    (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.jpg cannot be decoded"):
        decode.read_image(tmp_path / "broken.jpg", decoder)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named_and_costs_no_checkpoint(places, tmp_path, recipe, workers):
    whole = next((places / "train" / "airfield").iterdir()).read_bytes()
    root = with_broken_image(places, tmp_path, whole[: len(whole) // 2])
    args = flags(root, tmp_path / "out", "--checkpoint-every", 1, "--workers", workers)
    output, _ = recipe("train.py", *args).communicate(timeout=120)
    assert output.splitlines()[-1].startswith("error:")
    assert f"{root / 'broken.jpg'} cannot be decoded" in output.splitlines()[-1]
    state = checkpoint.load(tmp_path / "out" / "checkpoint.pt")
    assert (state["epoch"], state["batch"]) == (0, 3)

    draw(root / "broken.jpg", 0, np.random.default_rng(0))
    output, _ = recipe("train.py", *args, "--resume").communicate(timeout=120)
    assert (tmp_path / "out" / "results.json").exists(), output


# ---- decoding, augmentation, weights


def test_both_decoders_read_the_same_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "colour.png")
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "grey.png")
    for name in ("colour.png", "grey.png"):
        ours = decode.read_image(tmp_path / name, "torchvision")
        assert ours.shape == (3, 20, 30) and ours.dtype == torch.uint8
        assert torch.equal(ours, decode.read_image(tmp_path / name, "pil"))


def test_augmentation_is_a_function_of_seed_epoch_and_index(places):
    images = lists.read_list(places / "Places_LT_train.txt", places, 365)

    def batch(keys, seed=0):
        return decode.Training(images, 32, "torchvision", 0.4, seed).__getitems__(keys)[0]

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = batch([(0, 4), (0, 7)])
    assert torch.equal(torch.rand(3), expected), "the global generator was drawn from"
    assert first.shape == (2, 3, 32, 32) and first.dtype == torch.uint8
    assert torch.equal(first[1], batch([(0, 7)])[0])
    assert not torch.equal(first[1], batch([(1, 7)])[0])
    assert not torch.equal(first[1], batch([(0, 7)], seed=1)[0])


def test_weights_from_a_file(tmp_path):
    source = torchvision.models.resnet18()
    state = source.state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pt")
    network = models.from_torchvision("resnet18", 365, str(tmp_path / "w.pt"), normed=False)
    ours = network.state_dict()
    assert all(torch.equal(ours[key], state[key]) for key in state if not key.startswith("fc."))
    assert ours["fc.weight"].shape == (365, 512)
    with pytest.raises(ValueError, match="of another network"):
        models.from_torchvision("resnet34", 365, str(tmp_path / "w.pt"), normed=False)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_features_are_the_last_layers_inputs(arch):
    """Of a network whose last layer has another name, too; without a linear one it is refused."""
    if arch == "squeezenet1_1":
        with pytest.raises(ValueError, match="its last layer is a AdaptiveAvgPool2d"):
            models.from_torchvision(arch, 5, "none", normed=False)
        return
    network = models.from_torchvision(arch, 5, "none", normed=False).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network.fc(models.features(network, images)), network(images))


@pytest.mark.parametrize(
    "more",
    [
        ("--loss", "focal", "--momentum-form", "polyak", "--validate", 0.3, "--eval-every", 1),
        ("--amp", "bf16", "--channels-last", "--decode", "pil", "--optimizer", "sgd", "--tsne"),
    ],
)
def test_other_options(imagenet, tmp_path, more, capsys):
    results = train.main(
        flags(imagenet, tmp_path, *more, "--profile", preset="imagenet-lt-b-absgd")
    )
    assert all(math.isfinite(r["loss"]) for r in records_of(tmp_path) if r["split"] == "train")
    assert results["split"] == ("validation" if "--validate" in more else "test")
    printed = capsys.readouterr().out
    assert printed.count("profile: ") == 2
    for name in ("data", "forward", "backward", "step"):
        assert f"{name} " in printed[printed.index("profile: ") :].splitlines()[0]


def test_a_layer_that_the_network_does_not_have(imagenet, tmp_path):
    with pytest.raises(ValueError, match="layer9"):
        train.main(flags(imagenet, tmp_path, "--layers", "layer9", preset="imagenet-lt-a-sgd"))


# ---- evaluation


def test_evaluate_finds_the_same_numbers(places, whole_run, tmp_path, capsys):
    words = ["--data-dir", str(places), "--device", "cpu", "--output-dir", str(tmp_path)]
    assert evaluate.main([str(whole_run / "checkpoint.pt"), *words]) == []
    assert "the same numbers" in capsys.readouterr().out
