"""Image files, named by a list or by the folders they are in, and looked at before training."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch import Tensor

IMAGES = frozenset(torchvision.datasets.folder.IMG_EXTENSIONS)
MAX_BYTES = 2**31  # of a text, a list or a table; of an image file, half of it
MAX_CLASSES = 100_000  # whose numbers a list may name


@dataclass(frozen=True)
class Listed:
    """paths: files of images, relative to ``root``; targets: int64 [N]; classes: their names."""

    root: Path
    paths: Sequence[str]
    targets: Tensor
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, indices: Tensor) -> Listed:
        paths = [self.paths[i] for i in indices.tolist()]
        return Listed(self.root, paths, self.targets[indices], self.classes)

    def fingerprint(self) -> str:
        """Of names and labels: the files may lie elsewhere when a run is resumed."""
        content = hashlib.blake2b("\n".join(self.paths).encode("utf-8", "surrogateescape"),
                                  digest_size=16)  # fmt: skip
        content.update(self.targets.numpy().tobytes())
        return content.hexdigest()


def read_utf8(file: Path) -> str:
    """The text of ``file``.

    Raises:
        ValueError: it is in another encoding, too large, or no plain file; names it.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise ValueError(f"{file} is not a plain file")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"{file} has {status.st_size} bytes, more than {MAX_BYTES}")
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8 (byte {error.start}): if it is text, save it as UTF-8"
        ) from None


def parse_list(file: Path, num_classes: int | None = None) -> tuple[list[str], list[int]]:
    """The names and labels of a list: ``path label`` a line, labels counted from 0.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: a line is not of this form, or its label is not in 0 … num_classes − 1
            (MAX_CLASSES − 1 without).
    """
    if not file.is_file():
        raise FileNotFoundError(f"no such list: {file}")
    names, labels = [], []
    for number, line in enumerate(read_utf8(file).splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().replace("\t", " ").rpartition(" ")
        if not name or not label.removeprefix("-").isdecimal():
            raise ValueError(
                f"{file}, line {number}: not `path label` with a number from 0: {line!r}"
            )
        last = (MAX_CLASSES if num_classes is None else num_classes) - 1
        if len(label) > 9 or not 0 <= int(label) <= last:
            raise ValueError(f"{file}, line {number}: label {label[:12]} is not in 0 to {last}")
        names.append(name)
        labels.append(int(label))
    return names, labels


def read_list(
    file: Path, root: Path, num_classes: int | None = None, prefix: str = "",
    classes: Sequence[str] | None = None,
) -> Listed:  # fmt: skip
    """The images of a list, whose paths, less ``prefix``, are relative to ``root``.

    Raises: as :func:`parse_list` and :func:`checked`.
    """
    names, labels = parse_list(file, num_classes)
    names = [name.removeprefix(prefix) for name in names]
    classes = classes or list(map(str, range(num_classes or max(labels, default=0) + 1)))
    return checked(Listed(root, names, torch.tensor(labels, dtype=torch.int64), classes), file)


def checked(images: Listed, source: Path) -> Listed:
    """The images that ``source`` names, if they are there.

    Looks into every folder once: hundreds of thousands of files on a network drive are too many to
    ask for one by one.

    Raises:
        FileNotFoundError: an image is not there; names it.
        ValueError: there are no images.
    """
    if not images.paths:
        raise ValueError(f"{source} names no images")
    present: dict[str, set[str]] = {}
    for path in images.paths:
        folder, name = os.path.split(path)
        if folder not in present:
            place = images.root / folder
            present[folder] = set(os.listdir(place)) if place.is_dir() else set()
        if name not in present[folder]:
            raise FileNotFoundError(f"{source} names {images.root / path}, which is not there")
    return images


def parts_of(root: Path) -> tuple[Path, Path | None]:
    """``root/train``, and ``root/test`` or else ``root/val`` to test on, if there is one."""
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    return root / "train", test


def read_folder(
    root: Path, classes: Sequence[str] | None = None, suffixes: frozenset[str] = IMAGES
) -> Listed:
    """The files in ``root/<class>/``, in the order of their names.

    Args:
        classes: those of the training part; another one is then an error, a missing one is not.

    Raises:
        ValueError: nested otherwise; says what was found and what is wanted.
    """
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not folders:
        raise ValueError(f"{root} holds no folders: put each class's files in {root}/<class>/")
    unknown = sorted(set(folders) - set(classes or folders))
    if unknown:
        raise ValueError(f"{root}: no such class in the training part: {', '.join(unknown[:5])}")
    classes = list(classes or folders)
    paths, targets, passed_over = [], [], []
    for c, name in enumerate(classes):
        folder = root / name
        entries = sorted(os.scandir(folder), key=lambda e: e.name) if folder.is_dir() else []
        files = [e.name for e in entries if os.path.splitext(e.name)[1].lower() in suffixes]
        inner = [e.name for e in entries if e.is_dir()]
        if not files and inner:
            raise ValueError(
                f"{folder} holds folders ({', '.join(inner[:3])}) where a class's files should be: "
                f"move them up, so that {root}/<class>/ holds a class's files"
            )
        others = {e.name for e in entries if e.is_file() and e.name[0] != "."} - set(files)
        inside = (p for i in inner if i[0] != "." for p in (folder / i).rglob("*") if p.is_file())
        others |= {str(path.relative_to(folder)) for path in inside}
        passed_over += [f"{name}/{other}" for other in sorted(others)]
        paths += [f"{name}/{file}" for file in files]
        targets += [c] * len(files)
    if not paths:
        raise ValueError(f"{root}/<class>/ holds no file with {' '.join(sorted(suffixes))}")
    if passed_over:
        many = "s" * (len(passed_over) > 1)
        print(f"note: {len(passed_over)} file{many} under {root} passed over: {passed_over[0]}, …")
    return Listed(root, paths, torch.tensor(targets), classes)


# How files of images begin: JPEG, PNG, GIF, WebP in RIFF, TIFF.
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")


def without_waiting(path: str, flags: int) -> int:
    """An opener, for which a pipe that nobody writes to is no trap."""
    return os.open(path, flags | os.O_NONBLOCK)


def check_headers(images: Listed) -> None:
    """Opens every file and reads its first bytes; where these do not tell an image, all of its
    header.

    Raises:
        ValueError: some are no images; names the first of them and says how many there are.
    """
    root = str(images.root)

    def fault(path: str) -> str | None:
        file_name = os.path.join(root, path)
        try:
            with open(file_name, "rb", buffering=0, opener=without_waiting) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    return "not a plain file"
                if file.read(16).startswith(MAGIC):
                    return None
            with Image.open(file_name) as image:
                return None if min(image.size) > 0 else "it has no pixels"
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return str(error).splitlines()[0] if str(error) else type(error).__name__

    def faults(some: list[str]) -> list[tuple[str, str]]:
        return [(path, why) for path in some for why in [fault(path)] if why]

    paths = list(images.paths)
    parts = [paths[i : i + 1000] for i in range(0, len(paths), 1000)]
    with ThreadPoolExecutor(8) as pool:  # a network drive answers several at once
        found = [each for part in pool.map(faults, parts) for each in part]
    if found:
        path, why = found[0]
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        file_name = os.path.join(root, path)
        raise ValueError(f"{file_name} is not an image that can be read ({why}){more}")
