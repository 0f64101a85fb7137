"""Files from strangers: nothing in them is executed, takes memory without bound, is waited for for
ever, or leads to a file outside the output folder."""

from __future__ import annotations

import ast
import gzip
import os
import pickle
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import train
from data import decode, image_files, lists, named, tables
from engine import checkpoint

ROOT = Path(__file__).resolve().parents[2]
GIGABYTE = 2**30
UNSAFE = {
    "pickle": {"load", "loads", "Unpickler"}, "joblib": {"load"}, "marshal": {"load", "loads"},
    "shelve": {"open"}, "yaml": {"load", "unsafe_load", "full_load"},
    "tarfile": {"open", "TarFile"}, "zipfile": {"ZipFile"}, "shutil": {"unpack_archive"},
    "np": {"load", "fromfile", "memmap"}, "numpy": {"load", "fromfile", "memmap"},
    "os": {"system", "popen"}, "jit": {"load"},
}  # fmt: skip


def unsafe_calls(source: str) -> list[str]:
    """Calls that execute what a file says, or unpack it; torch.load without weights_only=True."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = UNSAFE.get(node.module or "", set()) & {alias.name for alias in node.names}
            found += [f"from {node.module} import {name}" for name in sorted(names)]
        if not isinstance(node, ast.Call):
            continue
        text = ast.unparse(node.func)
        *owners, name = text.split(".")
        safe = any(
            k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords
        )
        if (owners[-1:] == ["torch"] and name == "load" and not safe) or (
            owners and name in UNSAFE.get(owners[-1], ())
        ):
            found.append(text)
        if text in ("eval", "exec", "__import__"):
            found.append(text)
    return found


def test_no_source_executes_or_unpacks_a_file() -> None:
    files = [*(ROOT / "recipes").rglob("*.py"), *(ROOT / "docs").rglob("*.py")]
    files += (ROOT / "python").rglob("*.py")
    assert len(files) > 80
    found = {str(file): unsafe_calls(file.read_text()) for file in files}
    assert {file: calls for file, calls in found.items() if calls} == {}


@pytest.mark.parametrize("line", [
    "torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f)", "pickle.load(f)", "eval(x)",
    "tarfile.open(f)", "from pickle import loads", "shutil.unpack_archive(f)", "torch.jit.load(f)",
])  # fmt: skip
def test_the_scan_sees(line: str) -> None:
    assert unsafe_calls(line)


class Touch:
    """As a pickle, makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_checkpoint_executes_nothing(tmp_path: Path) -> None:
    torch.save({"model": Touch(tmp_path / "executed")}, tmp_path / "checkpoint.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    for name in ("checkpoint.pt", "text.pt"):
        with pytest.raises(ValueError, match=f"{name} is not a checkpoint") as raised:
            checkpoint.load(tmp_path / name)
        assert "eights" not in str(raised.value)  # torch's advice is weights_only=False
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        content = pickle.dumps(Touch(tmp_path / "executed"))
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(content)
    with pytest.raises(FileNotFoundError, match="corrupted"):
        named.load_cifar(tmp_path, "cifar10", train=True)
    assert not (tmp_path / "executed").exists()


# ---- memory


def png(path: Path, side: int) -> Path:
    """A valid black image; a thousandth of its pixels' size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    rows = zlib.compressobj()
    content = b"".join(rows.compress(bytes(side + 1)) for _ in range(side)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content)
                     + chunk(b"IEND", b""))  # fmt: skip
    return path


@pytest.fixture
def little_memory():
    """A gigabyte more than there is now: what would take more fails at once."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + GIGABYTE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("decoder", decode.DECODERS)
def test_a_decompression_bomb(tmp_path: Path, decoder: str, little_memory: None) -> None:
    bomb = png(tmp_path / "bomb.png", 20_000)
    assert bomb.stat().st_size < 2**20
    with pytest.raises(ValueError, match=r"bomb\.png cannot be decoded \(.*exceeds limit"):
        decode.read_image(bomb, decoder)


@pytest.mark.parametrize("decoder", decode.DECODERS)
def test_of_an_animation_one_frame_is_decoded(tmp_path: Path, decoder: str) -> None:
    frames = [Image.new("RGB", (30, 20), (i, 0, 0)) for i in (0, 90, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode.read_image(tmp_path / "a.gif", decoder).shape == (3, 20, 30)


@pytest.mark.parametrize("label", ["100000", "99999999999", "9" * 5000, "-1"])
def test_a_label_does_not_make_classes_without_bound(tmp_path: Path, label: str) -> None:
    (tmp_path / "list.txt").write_text(f"a.jpg 0\nb.jpg {label}\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 2: label .* is not in 0 to 99999"):
        lists.read_list(tmp_path / "list.txt", tmp_path)


def test_a_packed_set_is_unpacked_to_its_size_alone(tmp_path: Path, little_memory: None) -> None:
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(2**20))
    with pytest.raises(ValueError, match=r"ubyte\.gz is not Fashion-MNIST's: it is larger"):
        named.load_fashion(tmp_path, train=True)


def test_files_that_are_too_large(tmp_path: Path, little_memory: None) -> None:
    """Sparse ones: of no size on the disk."""
    for name in ("t.csv", "list.txt", "a.jpg"):
        with open(tmp_path / name, "wb") as file:
            file.write(b"\xff\xd8\xff")
            file.truncate(2**40)
    with pytest.raises(ValueError, match="more than 2147483648"):
        tables.read_columns(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="more than 2147483648"):
        lists.parse_list(tmp_path / "list.txt")
    for decoder in decode.DECODERS:
        with pytest.raises(ValueError, match="more than 1073741824 bytes"):
            decode.read_image(tmp_path / "a.jpg", decoder)


def test_a_line_without_end(tmp_path: Path, little_memory: None) -> None:
    with open(tmp_path / "t.csv", "w") as file:
        file.write("x,class\n")
        for _ in range(100):
            file.write("1" * 2**20)
    with pytest.raises(ValueError, match=r"t\.csv, line 2: field larger than field limit"):
        tables.read_columns(tmp_path / "t.csv")


def test_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "train2018.json").write_text("[" * 10**6)
    with pytest.raises(ValueError, match="not the competition's JSON"):
        image_files.read_competition(tmp_path / "train2018.json", tmp_path)


def test_a_column_of_a_value_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    value = arrow.DictionaryArray.from_arrays(np.zeros(2000, np.int32), ["x" * 1000])
    parquet.write_table(arrow.table({"x": value}), tmp_path / "t.parquet")
    assert len(tables.read_columns(tmp_path / "t.parquet")["x"]) == 2000
    monkeypatch.setattr(tables, "MAX_BYTES", 10**6)
    assert (tmp_path / "t.parquet").stat().st_size < 10**4
    with pytest.raises(ValueError, match="more than 1000000 characters"):
        tables.read_columns(tmp_path / "t.parquet")


# ---- waiting, and places


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "list.txt").write_text("a.jpg 0\n")
    with pytest.raises(ValueError, match=r"a\.jpg is not an image .*not a plain file"):
        lists.check_headers(lists.read_list(tmp_path / "list.txt", tmp_path))
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="not a plain file"):
        lists.read_utf8(tmp_path / "a.txt")


def everything(root: Path) -> dict[str, tuple[int, int]]:
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in paths}


COMMON = ["--epochs", "1", "--stage-two", "1", "--warmup-epochs", "0", "--lr-milestones",
          "--device", "cpu", "--keep-going", "--batch-size", "4"]  # fmt: skip


def test_paths_that_lead_out_are_read_and_nothing_is_written_there(
    tmp_path: Path, no_pictures: None
) -> None:
    """Absolute ones, and with "..": a list may name images anywhere."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "lists").mkdir()
    names = []
    for i in range(8):
        path = tmp_path / "elsewhere" / f"{i}.png"
        Image.new("RGB", (16, 16), (30 * i, 0, 0)).save(path)
        names.append(str(path) if i % 2 else f"../elsewhere/{i}.png")
    text = "".join(f"{name} {i // 4}\n" for i, name in enumerate(names))
    (tmp_path / "lists" / "l.txt").write_text(text)
    before = everything(tmp_path)
    where = str(tmp_path / "lists" / "l.txt")
    train.main(["--data", where, "--test", where, "--arch", "resnet8", "--image-size", "16",
                "--output-dir", str(tmp_path / "out"), *COMMON])  # fmt: skip
    after = {k: v for k, v in everything(tmp_path).items() if f"{tmp_path / 'out'}/" not in k}
    assert after == before


def test_names_of_classes_are_text_alone(tmp_path: Path) -> None:
    """Neither a path nor mathematics, in no file's name, TensorBoard tag or picture."""
    rng = np.random.default_rng(0)
    rows = [f"{x:.3f},{name}" for x in rng.normal(size=12) for name in ("../../x", r"$\nosuch{$")]
    (tmp_path / "t.csv").write_text("\n".join(["x,class", *rows]))
    (tmp_path / "out").mkdir()
    before = everything(tmp_path)
    train.main(["--data", str(tmp_path / "t.csv"), "--target", "class", "--validate", "0.3",
                "--output-dir", str(tmp_path / "out" / "run"), *COMMON])  # fmt: skip
    assert evaluate.main([str(tmp_path / "out" / "run" / "checkpoint.pt")]) == []
    new = set(everything(tmp_path)) - set(before)
    assert new and all(Path(file).parent == tmp_path / "out" / "run" for file in new)
    assert not (tmp_path.parent / "x").exists()


def test_a_checkpoint_does_not_say_where_to_write(tmp_path: Path, no_pictures: None) -> None:
    train.main(
        ["--data", "digits", "--limit", "20", "--output-dir", str(tmp_path / "run"), *COMMON]
    )
    path = tmp_path / "run" / "checkpoint.pt"
    state = checkpoint.load(path)
    state["config"] |= {"output_dir": str(tmp_path / "other"), "download": True, "resume": True}
    checkpoint.save(state, path)
    run = evaluate.restore(path, [])
    assert run.path == path and run.args.download is False
