"""What can be done to a trained network's classifier alone: cRT, LWS, τ-normalisation, NCM, and
post-hoc logit adjustment.

    python recipes/classifier_methods.py runs/ce/checkpoint.pt --data-dir data

Kang et al.: Decoupling Representation and Classifier for Long-Tailed Recognition. ICLR 2020,
Section 4. The checkpoint is of any image recipe, of stage one or of the end; its recipe and options
are read from it. cRT and LWS train with class-balanced sampling, lr falling to 0 as a cosine. What
is printed is of the split that the run reports on: choose τ on a run with --validate.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import data
import engine
import evaluate
import report
import torch_absgd as ta
from samplers import ClassBatches


def retrain_classifier(model: nn.Module) -> list[nn.Parameter]:
    """cRT: makes ``model.fc`` random anew and freezes the rest, batch norm included. To be trained
    with class-balanced sampling.

    Returns:
        The parameters to train.
    """
    model.fc.reset_parameters()
    return ta.freeze_except(model, "fc")


class ScaledClassifier(nn.Module):
    """LWS: f_c·(w_c·x + b_c) with w and b fixed and f learnable, 1 at first."""

    def __init__(self, fc: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.fc = fc.requires_grad_(False)
        some = next(fc.parameters())
        self.scale = nn.Parameter(torch.ones(num_classes, dtype=some.dtype, device=some.device))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * self.fc(features)


def learn_scales(model: nn.Module, num_classes: int) -> list[nn.Parameter]:
    """LWS: puts a :class:`ScaledClassifier` around ``model.fc`` and freezes the rest. To be trained
    with class-balanced sampling.

    Returns:
        The parameters to train: the C scales.
    """
    model.fc = ScaledClassifier(model.fc, num_classes)
    return ta.freeze_except(model, "fc")


@torch.no_grad()
def normalise(fc: nn.Linear, tau: float) -> None:
    """τ-normalisation (Equation 5): w_c ← w_c/‖w_c‖^τ in place; the bias is dropped, as there."""
    fc.weight.div_(fc.weight.norm(dim=1, keepdim=True) ** tau)
    if fc.bias is not None:
        fc.bias.zero_()


class NearestClassMean(nn.Module):
    """NCM: features to the cosine similarity with the mean feature of each class.

    Args:
        features: [N, D] of the training images, without augmentation.
        targets: int64 [N]; every class in [0, C) occurs.
    """

    def __init__(self, features: Tensor, targets: Tensor) -> None:
        super().__init__()
        members = F.one_hot(targets).to(features.dtype)
        self.register_buffer("means", (members.T @ features) / members.sum(0)[:, None])

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=1) @ F.normalize(self.means, dim=1).T


def adjust_logits(logits: Tensor, class_counts: Tensor, tau: float) -> Tensor:
    """Post-hoc logit adjustment: f_c − τ·log π_c, π_c being the share of class c in training.

    Menon et al.: Long-Tail Learning via Logit Adjustment. ICLR 2021, Equation 9.
    """
    share = class_counts.double() / class_counts.sum()
    return logits - tau * share.log().to(logits)


class AdjustedClassifier(nn.Module):
    """A classifier whose logits are adjusted after the fact: see :func:`adjust_logits`."""

    def __init__(self, fc: nn.Module, class_counts: Sequence[int], tau: float) -> None:
        super().__init__()
        self.fc, self.tau = fc, tau
        self.register_buffer("class_counts", torch.tensor(class_counts))

    def forward(self, features: Tensor) -> Tensor:
        return adjust_logits(self.fc(features), self.class_counts, self.tau)


# ---- on a checkpoint


@torch.no_grad()
def training_features(run: engine.Run) -> tuple[Tensor, Tensor]:
    """(features, targets) of the training images in their order, augmented as in one epoch."""
    task = run.task
    run.model.eval()
    task.batches.start(0)
    order = torch.tensor([index for batch in task.batches for _, index in batch])
    task.batches.start(0)
    parts = [(run.model.features(run.inputs(x)).float(), y) for x, y in task.loader]
    features, targets = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    back = order.argsort()
    return features[back], targets[back]


def retrain(
    run: engine.Run, parameters: list[nn.Parameter], targets: Tensor, epochs: int, lr: float
) -> None:
    """Trains ``parameters`` by SGD with momentum 0.9 on class-balanced batches."""
    args = run.args
    batches = ClassBatches(targets, args.batch_size, args.seed, "class")
    dataset = run.task.loader.dataset
    loader, _ = data.training_loader(dataset, args.batch_size, args.seed, batches=batches)
    optimizer = ta.ABSGD(parameters, lr=lr, momentum=0.9, weight_decay=args.weight_decay)
    criterion = ta.PerSampleCrossEntropy()
    steps = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: (1 + math.cos(math.pi * i / (epochs * len(batches)))) / 2
    )
    run.model.train()
    for epoch in range(epochs):
        batches.start(epoch)
        for images, labels in loader:
            logits = run.model(run.inputs(images))
            optimizer.weigh(criterion(logits, labels.to(args.device))).backward()
            optimizer.step()
            optimizer.zero_grad()
            steps.step()


def variants(
    run: engine.Run, epochs: int, lr: float, taus: Sequence[float]
) -> dict[str, nn.Module]:
    """The checkpoint's network under every method, by name."""
    counts = run.task.class_counts
    plain = copy.deepcopy(run.model.fc)
    features, targets = training_features(run)

    def restored() -> nn.Module:
        ta.unfreeze(run.model)
        run.model.fc = copy.deepcopy(plain)
        return run.model.fc

    found = {"as trained": plain}
    restored()
    retrain(run, retrain_classifier(run.model), targets, epochs, lr)
    found["cRT"] = run.model.fc
    restored()
    retrain(run, learn_scales(run.model, len(counts)), targets, epochs, lr)
    found["LWS"] = run.model.fc
    found["NCM"] = NearestClassMean(features, targets).to(run.args.device)
    for tau in taus:
        normalise(restored(), tau)
        found[f"τ-normalised, τ = {tau:g}"] = run.model.fc
    for tau in taus:
        adjusted = AdjustedClassifier(plain, counts, tau).to(run.args.device)
        found[f"logit adjustment, τ = {tau:g}"] = adjusted
    return found


def main(argv: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--retrain-epochs", type=int, default=10, help="of cRT and LWS")
    parser.add_argument("--retrain-lr", type=float, default=0.1)
    parser.add_argument("--taus", type=float, nargs="+", default=[1.0])
    args, words = parser.parse_known_args(argv)
    if not args.checkpoint.is_file():
        parser.error(f"no such checkpoint: {args.checkpoint}")
    run, state = evaluate.restore(args.checkpoint, words)
    if isinstance(run.model.fc, ta.NormedLinear):
        parser.error("this network's last layer is normed (LDAM): a plain one is needed")
    split = "validation" if run.args.validate else "test"
    if split == "test" and len(args.taus) > 1:
        parser.error("choose τ on a run with --validate: the test set is read once")
    torch.manual_seed(run.args.seed)
    groups = report.groups_by_shots(run.task.class_counts)
    classifiers = variants(run, args.retrain_epochs, args.retrain_lr, args.taus)
    features, targets = engine.predict(run, split, features=True)
    names = ("overall", "balanced", "many", "medium", "few")
    rows = []
    for name, classifier in classifiers.items():
        classifier.eval()
        with torch.no_grad():
            predictions = classifier(features.to(run.args.device)).argmax(1).cpu()
        metrics = report.metrics(targets, predictions, groups)
        rows.append([name, *(report.mean_std([metrics[n]]) for n in names)])
    text = report.markdown(["classifier", *names], rows)
    print(f"{args.checkpoint}, after {state['epoch']} epochs: {split} accuracy (%)\n\n{text}")
    return text


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
