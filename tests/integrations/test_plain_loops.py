"""AttentionalLoss in each framework's usual loop: to the last bit the numbers of a plain loop, and
their traps. MONAI and fastai run nightly."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import digits
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import torch_absgd as ta

pytestmark = pytest.mark.filterwarnings("ignore")  # the frameworks' own
EPOCHS, BATCH = 2, 32
X, Y = (part[::4] for part in digits.datasets()[0].tensors)
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers make folders where they run."""
    monkeypatch.chdir(tmp_path)


def loader() -> DataLoader[Any]:
    return DataLoader(list(zip(X, Y, strict=True)), BATCH)


def attentional(lam: float = 1.0) -> ta.AttentionalLoss:
    return ta.AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), lam=lam)


def plain_loop(model: nn.Module, criterion: ta.AttentionalLoss) -> None:
    opt = SGD(model.parameters())
    for _ in range(EPOCHS):
        for x, y in loader():
            criterion(model(x), y).backward()
            opt.step()
            opt.zero_grad()


def with_lightning(model: nn.Module, criterion: ta.AttentionalLoss) -> None:
    L = pytest.importorskip("lightning")

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.criterion = model, criterion

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return self.criterion(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return SGD(self.model.parameters())

    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = L.Trainer(accelerator="cpu", max_epochs=EPOCHS, **dict.fromkeys(quiet, False))
    trainer.fit(Module(), loader())


def with_hf_trainer(model: nn.Module, criterion: ta.AttentionalLoss) -> None:
    transformers = pytest.importorskip("transformers")

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.criterion = model, criterion

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.model(x)
            return {"loss": self.criterion(logits, labels), "logits": logits}

    class InOrder(transformers.Trainer):
        def get_train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(self.train_dataset, BATCH)  # as it is: no shuffling

    samples = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    settings = transformers.TrainingArguments(
        num_train_epochs=EPOCHS, lr_scheduler_type="constant", max_grad_norm=0, use_cpu=True,
        save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    opt = SGD(model.parameters())
    InOrder(Classifier(), settings, train_dataset=samples, optimizers=(opt, None)).train()


def with_timm(model: nn.Module, criterion: ta.AttentionalLoss) -> None:
    """timm brings no loop of its own: its optimizer factory and its scheduler."""
    timm_optim = pytest.importorskip("timm.optim")
    from timm.scheduler import StepLRScheduler

    opt = timm_optim.create_optimizer_v2(model, opt="momentum", lr=0.05, momentum=0.9)
    schedule = StepLRScheduler(opt, decay_t=10 * EPOCHS)
    for epoch in range(EPOCHS):
        for x, y in loader():
            criterion(model(x), y).backward()
            opt.step()
            opt.zero_grad()
        schedule.step(epoch + 1)


def with_accelerate(model: nn.Module, criterion: ta.AttentionalLoss) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.register_for_checkpointing(criterion)  # save_state() then has λ and log s
    model, opt, batches = accelerator.prepare(model, SGD(model.parameters()), loader())
    for _ in range(EPOCHS):
        for x, y in batches:
            accelerator.backward(criterion(model(x), y))
            opt.step()
            opt.zero_grad()


def with_skorch(model: nn.Module, criterion: ta.AttentionalLoss) -> None:
    skorch = pytest.importorskip("skorch")
    net = skorch.NeuralNetClassifier(
        model, criterion=criterion, optimizer=SGD, lr=0.05, max_epochs=EPOCHS, batch_size=BATCH,
        train_split=None, verbose=0, predict_nonlinearity=partial(torch.softmax, dim=-1),
    )  # fmt: skip
    net.fit(X.numpy(), Y.numpy())
    log_s = criterion.log_s
    torch.testing.assert_close(
        torch.tensor(net.predict_proba(X.numpy())).sum(1), torch.ones(len(X))
    )
    loss = net.validation_step((X, Y))["loss"]  # puts the criterion into eval()
    torch.testing.assert_close(loss, F.cross_entropy(net.module_(X), Y).detach())
    assert torch.equal(criterion.log_s, log_s)
    net.set_params(predict_nonlinearity="auto")  # knows nn.CrossEntropyLoss, not what wraps it
    torch.testing.assert_close(torch.tensor(net.predict_proba(X.numpy())), net.module_(X).detach())


def with_ignite(model: nn.Module, criterion: ta.AttentionalLoss) -> None:
    pytest.importorskip("ignite")
    from ignite.engine import create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Loss

    create_supervised_trainer(model, SGD(model.parameters()), criterion).run(loader(), EPOCHS)
    log_s = criterion.log_s
    evaluator = create_supervised_evaluator(model, {"loss": Loss(criterion)})
    loss = evaluator.run(loader()).metrics["loss"]  # under no_grad: the plain mean
    assert loss == pytest.approx(F.cross_entropy(model(X), Y).item(), rel=1e-5)
    assert torch.equal(criterion.log_s, log_s)


def with_monai(model: nn.Module, criterion: ta.AttentionalLoss) -> None:
    pytest.importorskip("monai", reason="a nightly run has it")
    from monai.engines import SupervisedTrainer

    samples = [{"image": x, "label": y} for x, y in zip(X, Y, strict=True)]
    SupervisedTrainer(
        torch.device("cpu"), EPOCHS, DataLoader(samples, BATCH), model, SGD(model.parameters()),
        criterion,
    ).run()  # fmt: skip


def fastai_learner(model: nn.Module, opt: Callable[..., Any], **options: Any) -> Any:
    pytest.importorskip("fastai", reason="a nightly run has it")
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    batches = DataLoaders(loader(), loader(), device=torch.device("cpu"))
    return Learner(
        batches, model, opt_func=partial(OptimWrapper, opt=opt), lr=0.05, metrics=[], **options
    )


def with_fastai(model: nn.Module, criterion: ta.AttentionalLoss) -> None:
    learner = fastai_learner(model, partial(SGD, lr=0.05), loss_func=criterion)
    learner.fit(EPOCHS)
    log_s = criterion.log_s
    (loss,) = learner.validate()  # under no_grad: the plain mean
    assert loss == pytest.approx(F.cross_entropy(model(X), Y).item(), rel=1e-5)
    assert torch.equal(criterion.log_s, log_s)


TRAINERS = [
    with_lightning, with_hf_trainer, with_timm, with_accelerate, with_skorch, with_ignite,
    with_monai, with_fastai,
]  # fmt: skip


@pytest.mark.parametrize("train", TRAINERS)
def test_the_numbers_are_the_plain_loop_s(train: Callable[..., None]) -> None:
    ends: list[list[Tensor]] = []
    for run, lam in ((plain_loop, 1.0), (train, 1.0), (plain_loop, 2.0)):
        torch.manual_seed(0)
        model, criterion = digits.small_model(), attentional(lam)
        run(model, criterion)
        ends.append([*(p.detach() for p in model.parameters()), criterion.log_s])
    expected, ours, other = ends
    assert all(map(torch.equal, ours, expected))
    assert not any(map(torch.equal, other, expected))  # λ does matter to them


def test_fastai_steps_and_saves_an_absgd(tmp_path: Path) -> None:
    absgd = partial(ta.ABSGD, momentum=0.9, lam=1.0)

    def learner_and_criterion() -> tuple[Any, ta.AttentionalLoss]:
        torch.manual_seed(0)
        learner = fastai_learner(digits.small_model(), absgd, loss_func=nn.CrossEntropyLoss())
        learner.create_opt()
        criterion = ta.AttentionalLoss(
            nn.CrossEntropyLoss(reduction="none"), optimizer=learner.opt.opt
        )
        learner.loss_func = criterion
        return learner, criterion

    learner, criterion = learner_and_criterion()
    learner.fit(EPOCHS)
    torch.manual_seed(0)
    model = digits.small_model()
    opt = absgd(model.parameters(), lr=0.05)
    for _ in range(EPOCHS):
        for x, y in loader():
            opt.weigh(F.cross_entropy(model(x), y, reduction="none")).backward()
            opt.step()
            opt.zero_grad()
    assert all(map(torch.equal, learner.model.parameters(), model.parameters()))
    assert torch.equal(criterion.log_s, opt.log_s)

    learner.save(tmp_path / "learner")
    other, resumed = learner_and_criterion()
    assert not torch.equal(resumed.log_s, criterion.log_s)
    other.load(tmp_path / "learner", with_opt=True)
    assert torch.equal(resumed.log_s, criterion.log_s)
