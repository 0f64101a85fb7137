"""COVID-LT: assembling it from sources laid out as the two public ones are, and a run on it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
import train
from data import assemble_covid_lt as assemble

# The first lines of the sources' own CSV files.
METADATA = next(csv.reader([
    "patientid,offset,sex,age,finding,RT_PCR_positive,survival,intubated,intubation_present,"
    "went_icu,in_icu,needed_supplemental_O2,extubated,temperature,pO2_saturation,"
    "leukocyte_count,neutrophil_count,lymphocyte_count,view,modality,date,location,folder,"
    "filename,doi,url,license,clinical_notes,other_notes,"
]))  # fmt: skip
CHEXPERT = next(csv.reader([
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,"
    "Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,"
    "Pleural Effusion,Pleural Other,Fracture,Support Devices"
]))  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding and encoding"),
    pytest.mark.usefixtures("no_pictures"),
]

TINY = [
    "--arch", "resnet18", "--pretrained", "none", "--image-size", "32", "--batch-size", "8",
    "--epochs", "2", "--stage-two", "1", "--lr", "0.02", "--device", "cpu",
]  # fmt: skip


def write_csv(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def covid_rows():
    """Ten COVID-19 X-rays of seven patients, and what does not belong."""
    kinds = [
        ("Pneumonia/Viral/COVID-19", "PA", "X-ray"), ("COVID-19, ARDS", "AP", "X-ray"),
        ("Pneumonia/Viral/COVID-19", "AP Supine", "X-ray"),
    ]  # fmt: skip
    patients = [0, 1, 2, 3, 4, 5, 5, 6, 6, 6]
    belongs = [(patient, *kinds[i % 3]) for i, patient in enumerate(patients)]
    others = [
        (0, "Pneumonia/Viral/COVID-19", "L", "X-ray"), (1, "COVID-19", "Axial", "CT"),
        (8, "Pneumonia/Viral/SARS", "PA", "X-ray"), (9, "No Finding", "PA", "X-ray"),
    ]  # fmt: skip
    return [
        {"patientid": p, "finding": f, "view": v, "modality": m, "folder": "images",
         "filename": f"image {i}.{'png' if i % 2 else 'jpg'}"}
        for i, (p, f, v, m) in enumerate(belongs + others)
    ]  # fmt: skip


def chexpert_rows():
    """Sixty patients with two studies each, frontal and lateral, of the same class; labels as
    CheXpert writes them: 1.0, 0.0, -1.0 (uncertain) or nothing."""
    kinds = [
        ({"No Finding": "1.0"}, "normal"),
        ({"Pneumonia": "1.0", "Edema": "1.0"}, "pneumonia"),
        ({"Cardiomegaly": "1.0", "Pneumonia": "0.0"}, "other findings"),
        ({"Edema": "1.0"}, "other findings"),
        ({"Edema": "1.0", "Pneumonia": "-1.0"}, None),
        ({"Support Devices": "1.0"}, None),
    ]
    rows, expected = [], {}
    for patient in range(60):
        labels, name = kinds[patient % len(kinds)]
        for study in (1, 2):
            for number, view in ((1, "frontal"), (2, "lateral")):
                path = (
                    f"CheXpert-v1.0-small/train/patient{patient:05d}/study{study}/"
                    f"view{number}_{view}.jpg"
                )
                rows.append({"Path": path, "Frontal/Lateral": view.capitalize(), **labels})
                expected[path] = name if view == "frontal" else None
    return rows, expected


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("xrays")
    write_csv(root / "covid-chestxray-dataset" / "metadata.csv", METADATA, covid_rows())
    write_csv(root / "CheXpert-v1.0-small" / "train.csv", CHEXPERT, chexpert_rows()[0])
    rng = np.random.default_rng(0)
    images = [f"covid-chestxray-dataset/images/{row['filename']}" for row in covid_rows()]
    images += [row["Path"] for row in chexpert_rows()[0]]
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (40, 48)).astype(np.uint8)  # X-rays are grey
        Image.fromarray(pixels).save(root / image)
    return root


SMALL = ("--ratio", "8", "--rarest", "2", "--test", "4")


@pytest.fixture(scope="module")
def assembled(sources, tmp_path_factory):
    directory = tmp_path_factory.mktemp("lists")
    assemble.main(["--data-dir", str(sources), "--output-dir", str(directory), *SMALL])
    return directory


def pairs_of(file):
    return [line.rsplit(" ", 1) for line in file.read_text().splitlines()]


def test_class_counts_follow_the_papers_formula():
    assert assemble.class_counts(8, 2) == [16, 8, 4, 2]
    for ratio in (10, 20, 100):
        counts = assemble.class_counts(ratio, 378)
        n_0 = 378 * ratio
        assert counts == [int(n_0 * ratio ** (-i / 3) + 1e-9) for i in range(4)]
        assert counts[0] == n_0 and counts[-1] == 378
        assert sum(counts) not in (12_875, 4_516)  # the totals that the paper prints


def test_what_belongs_to_which_class(sources):
    xrays = [*assemble.read_covid(sources), *assemble.read_chexpert(sources)]
    _, expected = chexpert_rows()
    found = {x.path: assemble.CLASSES[x.label] for x in xrays}
    covid = {path for path, name in found.items() if name == "COVID-19"}
    assert covid == {
        f"covid-chestxray-dataset/images/{row['filename']}" for row in covid_rows()[:10]
    }
    assert {p: n for p, n in found.items() if p not in covid} == {
        path: name for path, name in expected.items() if name
    }


def test_the_lists_have_the_counts_and_share_no_patient(sources, assembled):
    train, test = (pairs_of(assembled / f"COVID_LT_8_{part}.txt") for part in ("train", "test"))
    assert np.bincount([int(c) for _, c in train]).tolist() == [16, 8, 4, 2]
    assert np.bincount([int(c) for _, c in test]).tolist() == [4, 4, 4, 4]
    xrays = [*assemble.read_covid(sources), *assemble.read_chexpert(sources)]
    patient = {x.path: x.patient for x in xrays}
    trained, tested = ({patient[path] for path, _ in pairs} for pairs in (train, test))
    assert not trained & tested
    assert len({path for path, _ in train + test}) == len(train + test)


def test_the_lists_are_a_function_of_the_seed(sources, assembled, tmp_path):
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        out = ["--output-dir", str(tmp_path / str(seed)), "--seed", str(seed)]
        assemble.main(["--data-dir", str(sources), *SMALL, *out])
    lists = [d / "COVID_LT_8_train.txt" for d in (assembled, tmp_path / "0", tmp_path / "1")]
    ours, same, other = (file.read_text() for file in lists)
    assert ours == same != other


def test_too_few_images(sources, tmp_path):
    words = ["--data-dir", str(sources), "--output-dir", str(tmp_path)]
    with pytest.raises(ValueError, match="other findings: 37800 images to train on and 100 to"):
        assemble.main(words)
    assert list(tmp_path.iterdir()) == []


def test_missing_sources_and_columns_are_told_in_one_line(tmp_path, recipe):
    output, _ = recipe("data/assemble_covid_lt.py", "--data-dir", tmp_path).communicate()
    assert output.startswith("error: no such file:") and len(output.splitlines()) == 1
    file = Path(tmp_path) / "covid-chestxray-dataset" / "metadata.csv"
    write_csv(file, ["patientid", "finding"], [])
    with pytest.raises(ValueError, match=r"metadata\.csv has no column filename, folder"):
        list(assemble.read_covid(tmp_path))


def test_a_run_in_two_stages_resumed_and_evaluated(sources, assembled, tmp_path, capsys):
    words = [
        "--preset", "covid-lt-100-absgd", "--data", "covid-lt-8", *TINY, "--loss", "ldam",
        "--data-dir", str(sources), "--lists-dir", str(assembled), "--class-balance", "drw",
        "--output-dir", str(tmp_path),
    ]  # fmt: skip
    assert train.main([*words, "--stop-epoch", "1"]) is None
    results = train.main([*words, "--resume"])
    assert results["class_counts"] == [16, 8, 4, 2]
    assert results["metrics"]["many"] is None and results["metrics"]["few"] is not None
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [float(r["lam"]) for r in records] == [float("inf"), 5.0]

    where = ["--data-dir", str(sources), "--lists-dir", str(assembled), "--device", "cpu"]
    assert evaluate.main([str(tmp_path / "checkpoint.pt"), *where]) == []
    printed = capsys.readouterr().out
    for name in assemble.CLASSES:
        assert f"| {name} " in printed


def test_the_preset_has_the_papers_settings(tmp_path):
    args = train.parse(["--preset", "covid-lt-100-absgd", "--output-dir", str(tmp_path)])
    assert (args.arch, args.pretrained, args.layers) == ("resnet50", "imagenet", ["layer4", "fc"])
    assert (args.epochs, args.stage_two, args.lr, args.batch_size) == (90, 60, 0.1, 256)
    assert (args.lr_schedule, args.lr_milestones, args.lr_factor) == ("step", [30, 60], 0.01)
