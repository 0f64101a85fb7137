"""Writes COVID-LT's two lists, from the two public sources that a user downloads.

    python recipes/data/assemble_covid_lt.py --data-dir xrays --ratio 100

--data-dir holds
    covid-chestxray-dataset/     https://github.com/ieee8023/covid-chestxray-dataset, a clone:
                                 metadata.csv and images/
    CheXpert-v1.0-small/         https://stanfordmlgroup.github.io/competitions/chexpert:
                                 train.csv and train/

and gets COVID_LT_100_train.txt and COVID_LT_100_test.txt, 100 being ρ, `path label` a line; no
image is copied. Frontal X-rays only. COVID-19 is the first source's, the other classes are
CheXpert's: normal is "No Finding"; pneumonia is "Pneumonia"; other findings are the rest of its
findings where pneumonia is neither positive nor uncertain. No patient is in both lists.

Class i, in the order of CLASSES, has n_i = n_0·ρ^(−i/3) training images, rounded down, with n_0
such that COVID-19 has 378. The totals that the paper prints, 12,875 and 4,516, do not follow from
this formula, its own, at a round ρ: they would take ρ of about 22.3 and 5.9. The formula is what is
followed here.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CLASSES = ("other findings", "normal", "pneumonia", "COVID-19")
RAREST, TEST = 378, 100

COVID, CHEXPERT = "covid-chestxray-dataset", "CheXpert-v1.0-small"
FRONTAL = {"PA", "AP", "AP Supine", "AP Erect", "AP semi erect"}
OTHER_FINDINGS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
)  # fmt: skip


@dataclass(frozen=True)
class XRay:
    """path: relative to --data-dir; patient: unique over both sources."""

    path: str
    label: int
    patient: str


def rows_of(file: Path, columns: Iterable[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV file.

    Raises:
        FileNotFoundError, ValueError: it is not there, or lacks a column.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}; see --help for where to get it")
    with open(file, newline="", encoding="utf-8") as content:
        reader = csv.DictReader(content)
        missing = sorted(set(columns) - set(reader.fieldnames or ()))
        if missing:
            raise ValueError(f"{file} has no column {', '.join(missing)}")
        yield from reader


def read_covid(directory: Path) -> Iterator[XRay]:
    columns = ("patientid", "finding", "view", "modality", "folder", "filename")
    for row in rows_of(directory / COVID / "metadata.csv", columns):
        if "COVID-19" in row["finding"] and row["modality"] == "X-ray" and row["view"] in FRONTAL:
            path = f"{COVID}/{row['folder']}/{row['filename']}"
            yield XRay(path, CLASSES.index("COVID-19"), f"{COVID} {row['patientid']}")


def chexpert_label(row: dict[str, str]) -> int | None:
    """None: of no class. CheXpert writes 1.0 for positive, −1.0 for uncertain."""

    def is_positive(finding: str) -> bool:
        return row[finding] != "" and float(row[finding]) == 1

    if is_positive("Pneumonia"):
        return CLASSES.index("pneumonia")
    if is_positive("No Finding"):
        return CLASSES.index("normal")
    is_uncertain = row["Pneumonia"] != "" and float(row["Pneumonia"]) < 0
    if not is_uncertain and any(is_positive(finding) for finding in OTHER_FINDINGS):
        return CLASSES.index("other findings")
    return None


def read_chexpert(directory: Path) -> Iterator[XRay]:
    columns = ("Path", "Frontal/Lateral", "No Finding", "Pneumonia", *OTHER_FINDINGS)
    for row in rows_of(directory / CHEXPERT / "train.csv", columns):
        label = chexpert_label(row)
        if label is not None and row["Frontal/Lateral"] == "Frontal":
            _, _, patient, *_ = row["Path"].split("/")  # CheXpert-v1.0-small/train/patient00001/…
            yield XRay(row["Path"], label, f"{CHEXPERT} {patient}")


def class_counts(ratio: float, rarest: int) -> list[int]:
    """n_i = n_0·ρ^(−i/3), rounded down; the last is ``rarest``."""
    last = len(CLASSES) - 1
    return [int(rarest * ratio ** ((last - i) / last) + 1e-9) for i in range(len(CLASSES))]


def split(
    xrays: Sequence[XRay], counts: Sequence[int], test: int, seed: int
) -> tuple[list[XRay], list[XRay]]:
    """(training, test) images: ``counts[c]`` and ``test`` of each class c, no patient in both.

    Raises:
        ValueError: there are not so many; says of which class.
    """
    rng = random.Random(seed)
    by_patient: list[dict[str, list[XRay]]] = [defaultdict(list) for _ in CLASSES]
    for xray in xrays:
        by_patient[xray.label][xray.patient].append(xray)

    held_out, tested = [], set()
    for patients in by_patient:
        need = test
        for patient in rng.sample(sorted(patients), len(patients)):
            if len(patients[patient]) <= need:  # whole patients, so that none is wasted
                held_out += patients[patient]
                tested.add(patient)
                need -= len(patients[patient])
    training = []
    for label, patients in enumerate(by_patient):
        rest = [x for p in sorted(patients) if p not in tested for x in patients[p]]
        of_class = sum(x.label == label for x in held_out)
        if of_class < test or len(rest) < counts[label]:
            raise ValueError(
                f"{CLASSES[label]}: {counts[label]} images to train on and {test} to test on are "
                f"wanted, there are {len(rest)} and {of_class} (lower --ratio, or --rarest)"
            )
        training += rng.sample(rest, counts[label])
    return training, held_out


def write(xrays: Sequence[XRay], file: Path) -> None:
    lines = [f"{x.path} {x.label}\n" for x in sorted(xrays, key=lambda x: (x.label, x.path))]
    file.write_text("".join(lines))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--output-dir", type=Path, help="of the lists; default: --data-dir")
    parser.add_argument("--ratio", type=float, default=100.0, help="the paper's rho = n_0/n_3")
    parser.add_argument("--rarest", type=int, default=RAREST, help="training images of COVID-19")
    parser.add_argument("--test", type=int, default=TEST, help="test images of each class")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.ratio < 1:
        parser.error(f"--ratio must be >= 1, got {args.ratio}")
    xrays = [*read_covid(args.data_dir), *read_chexpert(args.data_dir)]
    counts = class_counts(args.ratio, args.rarest)
    training, test = split(xrays, counts, args.test, args.seed)
    directory = args.output_dir or args.data_dir
    write(training, directory / f"COVID_LT_{args.ratio:g}_train.txt")
    write(test, directory / f"COVID_LT_{args.ratio:g}_test.txt")
    described = ", ".join(f"{name} {n}" for name, n in zip(CLASSES, counts, strict=True))
    print(f"{directory}: {len(training)} training images ({described}), {len(test)} test images")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
