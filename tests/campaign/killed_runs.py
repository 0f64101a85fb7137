"""The runs that kills.py kills: tiny ones, each of which goes on from what its folder holds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
import train
from engine import checkpoint, report

INTEGRATIONS = str(Path(__file__).resolve().parents[2] / "recipes" / "integrations")
Fault = Callable[[], AbstractContextManager[Any]]  # what befalls a run

# ---- the recipes' five kinds of data


def images(root: Path) -> list[str]:
    rng = np.random.default_rng(0)
    for part, counts in (("train", (12, 4)), ("val", (3, 3))):
        for c, n in enumerate(counts):
            (root / part / f"c{c}").mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 120, (20, 22, 3)).astype(np.uint8) + 100 * c
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / f"c{c}" / f"{i}.jpg")
    return ["--data", str(root), "--arch", "resnet8", "--image-size", "16", "--batch-size", "4"]


def image_list(root: Path) -> list[str]:
    words = images(root)[2:]
    for part, counts in (("train", (12, 4)), ("val", (3, 3))):
        lines = [f"{part}/c{c}/{i}.jpg {c}" for c, n in enumerate(counts) for i in range(n)]
        (root / f"{part}.txt").write_text("\n".join(lines))
    return ["--data", str(root / "train.txt"), "--test", str(root / "val.txt"), *words]


def digits(root: Path) -> list[str]:
    return ["--data", "digits", "--imbalance", "lt", "--imbalance-ratio", "10"]


def table(root: Path) -> list[str]:
    rng = np.random.default_rng(0)
    rows = [f"{x:.3f},{y:.3f},{'ab'[int(x > 0.8)]}" for x, y in rng.normal(size=(80, 2))]
    (root / "t.csv").write_text("\n".join(["x,y,class", *rows]))
    return ["--data", str(root / "t.csv"), "--target", "class", "--validate", "0.2",
            "--batch-size", "8"]  # fmt: skip


def texts(root: Path) -> list[str]:
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for word, n in (("good", 24), ("bad", 8)):
            (root / part / word).mkdir(parents=True)
            for i in range(n):
                some = rng.choice(["film", "the", word], int(rng.integers(1, 9)))
                (root / part / word / f"{i}.txt").write_text(" ".join(some))
    return ["--data", str(root), "--hidden", "4", "--embedding", "4", "--batch-size", "8"]


class Recipe:
    """train.py on one kind of data, a checkpoint after every batch."""

    OPTIONS = ("--epochs", "4", "--stage-two", "2", "--lr-milestones", "2", "--warmup-epochs", "1",
               "--lr", "0.05", "--lam", "1", "--checkpoint-every", "1", "--device", "cpu",
               "--keep-going", "--resume")  # fmt: skip
    processes = 1

    def __init__(self, data: Callable[[Path], list[str]], root: Path) -> None:
        root.mkdir()
        self.words = [*data(root), *self.OPTIONS]

    def run(self, folder: Path, fault: Fault) -> None:
        report.plot_run = lambda *_: None  # most of a tiny run's time would go there
        with fault():
            train.main([*self.words, "--output-dir", str(folder)])

    def progress(self, folder: Path) -> tuple[int, ...]:
        """Where the run would go on; reads all of the checkpoint."""
        if not (folder / "checkpoint.pt").exists():
            return (0, 0)
        state = checkpoint.load(folder / "checkpoint.pt")
        return state["epoch"], state["batch"]

    def end(self, folder: Path) -> dict[str, Any]:
        """What must be the same, bit for bit, however the run was stopped."""
        texts = {name: (folder / name).read_text() for name in ("log.jsonl", "results.json")}
        return {**checkpoint.load(folder / "checkpoint.pt"), **texts}


# ---- torchrun


class Torchrun(Recipe):
    """The digits on two processes, which torchrun starts again when one of them dies."""

    processes = 2

    def __init__(self, root: Path) -> None:
        super().__init__(digits, root)

    def run(self, folder: Path, fault: Fault) -> None:
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        config = LaunchConfig(
            1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id=folder.name,
            monitor_interval=0.05, start_method="fork",
        )  # fmt: skip
        elastic_launch(config, super().run)(folder, fault)

    def trains(self, folder: Path) -> bool:
        return self.progress(folder) < (4, 0)


# ---- the frameworks' own loops


class Lightning:
    """A checkpoint after each epoch, in the place of the one before."""

    processes = 1

    def __init__(self, root: Path) -> None:
        sys.path.insert(0, INTEGRATIONS)
        import lightning_digits

        self.module = lightning_digits

    def run(self, folder: Path, fault: Fault) -> None:
        import lightning as L
        from lightning.pytorch.callbacks import ModelCheckpoint
        from torch.utils.data import DataLoader

        torch.manual_seed(0)
        digits = self.module.digits
        keep = ModelCheckpoint(folder, "last", every_n_epochs=1, enable_version_counter=False)
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=12, accumulate_grad_batches=2, gradient_clip_val=0.5,
            enable_progress_bar=False, enable_model_summary=False, logger=False, callbacks=[keep],
        )  # fmt: skip
        there = folder / "last.ckpt"
        data = DataLoader(digits.datasets()[0], 32)
        with fault():
            trainer.fit(
                self.module.Digits(lam=1.0), data, ckpt_path=there if there.exists() else None
            )

    def progress(self, folder: Path) -> tuple[int, ...]:
        there = folder / "last.ckpt"
        if not there.exists():
            return (0,)
        return (torch.load(there, weights_only=True)["global_step"],)

    def end(self, folder: Path) -> dict[str, Any]:
        state = torch.load(folder / "last.ckpt", weights_only=True)
        return {name: state[name] for name in ("state_dict", "optimizer_states", "global_step")}


class HuggingFace:
    """A checkpoint every five steps, in a folder of its own. The Trainer writes into that folder
    file by file; the last of them is trainer_state.json, so one without it is passed over."""

    processes = 1

    def __init__(self, root: Path) -> None:
        sys.path.insert(0, INTEGRATIONS)
        import hf_trainer_digits
        from safetensors.torch import load_file

        self.module, self.load = hf_trainer_digits, load_file

    def whole(self, folder: Path) -> list[Path]:
        """The checkpoints that were written to their ends, the newest last."""
        found = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
        return sorted(found, key=lambda path: int(path.name.partition("-")[2]))

    def run(self, folder: Path, fault: Fault) -> None:
        torch.manual_seed(0)
        trainer = self.module.build(
            str(folder), 1.0, 3, 2, use_cpu=True, save_strategy="steps", save_steps=5,
            save_total_limit=2,
        )  # fmt: skip
        there = self.whole(folder)
        with fault():
            trainer.train(resume_from_checkpoint=str(there[-1]) if there else None)
            trainer.save_model(folder / "end")
            torch.save(trainer.optimizer.state_dict(), folder / "end" / "optimizer.pt")

    def progress(self, folder: Path) -> tuple[int, ...]:
        there = self.whole(folder)
        if not there:
            return (0,)
        self.load(there[-1] / "model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt"):
            torch.load(there[-1] / name, weights_only=True)
        return (int(there[-1].name.partition("-")[2]),)

    def end(self, folder: Path) -> dict[str, Any]:
        return {
            "model": self.load(folder / "end" / "model.safetensors"),
            "optimizer": torch.load(folder / "end" / "optimizer.pt", weights_only=True),
        }


RECIPES = (images, image_list, digits, table, texts)
KINDS: dict[str, Callable[[Path], Any]] = {
    **{data.__name__: lambda root, data=data: Recipe(data, root) for data in RECIPES},
    "torchrun": Torchrun,
    "lightning": Lightning,
    "hf_trainer": HuggingFace,
}
