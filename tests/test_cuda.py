"""The operators on a card against those on the CPU. Without one, only the status is tested."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_absgd as ta
from torch_absgd._cuda import cuda_status

needs_card = [
    pytest.mark.cuda,
    pytest.mark.skipif(cuda_status() != "loaded", reason=f"no CUDA operators: {cuda_status()}"),
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def card(test):
    for mark in needs_card:
        test = mark(test)
    return test


def test_status_is_a_sentence_or_loaded():
    status = cuda_status()
    assert status == "loaded" or (status.endswith(".") and " " in status)
    if not torch.cuda.is_available():
        assert status != "loaded" or torch.version.cuda is not None


@card
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 128, 5000])
def test_weigh_is_the_cpus(dtype, n):
    def run(device: str) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        opt = ta.ABSGD([nn.Parameter(torch.zeros(1, device=device))], lam=0.5)
        for _ in range(3):
            losses = torch.rand(n).mul(4).to(device, dtype).requires_grad_()
            total = opt.weigh(losses)
            total.backward()
        return total.detach().cpu(), losses.grad.cpu(), opt.log_s.cpu()

    for got, wanted in zip(run("cuda"), run("cpu"), strict=True):
        torch.testing.assert_close(got, wanted)


@card
@pytest.mark.parametrize("momentum_form", ["torch", "polyak"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_training_is_the_cpus(dtype, momentum_form):
    def run(device: str) -> Tensor:
        torch.manual_seed(0)
        w = nn.Parameter(torch.randn(300, 7).to(device, dtype))
        opt = ta.ABSGD([w], lr=0.1, momentum=0.9, weight_decay=0.01, momentum_form=momentum_form)
        for _ in range(3):
            w.grad = torch.randn(300, 7).to(device, dtype)
            opt.step()
        return w.detach().cpu()

    torch.testing.assert_close(run("cuda"), run("cpu"))


@card
@pytest.mark.parametrize("shape", [(64, 10), (16, 1000), (9, 8142), (2, 19, 33, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_are_the_cpus(dtype, shape):
    logits = torch.randn(shape).to(dtype)
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    target.view(-1)[::5] = -100
    counts = torch.arange(1, shape[1] + 1)
    criteria = (
        ta.PerSampleCrossEntropy(label_smoothing=0.1),
        ta.PerSampleFocal(gamma=2.0),
        ta.PerSampleLDAM(counts),
    )
    for criterion in criteria:
        results = []
        for device in ("cuda", "cpu"):
            x = logits.to(device).requires_grad_()
            losses = criterion.to(device)(x, target.to(device))
            losses.sum().backward()
            results.append((losses.detach().cpu(), x.grad.cpu()))
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(
                got,
                wanted,
                rtol=1e-2 if dtype in DTYPES[2:] else 1e-4,
                atol=1e-3 if dtype in DTYPES[2:] else 1e-5,
            )


@card
def test_an_invalid_target_gives_nan_in_its_sample_alone():
    logits = torch.randn(4, 5, device="cuda")
    losses = ta.PerSampleCrossEntropy()(logits, torch.tensor([0, 7, -3, 4], device="cuda"))
    assert losses.isnan().tolist() == [False, True, True, False]


@card
def test_attentional_loss_in_one_call_is_the_cpus():
    def run(device: str) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        criterion = ta.AttentionalLoss(ta.PerSampleCrossEntropy(), lam=1.0).to(device)
        x = torch.randn(32, 6).to(device).requires_grad_()
        y = torch.randint(6, (32,))
        y[3] = -100
        loss = criterion(x, y.to(device))
        loss.backward()
        return loss.detach().cpu(), x.grad.cpu()

    for got, wanted in zip(run("cuda"), run("cpu"), strict=True):
        torch.testing.assert_close(got, wanted)


@card
def test_amp_overflow_leaves_every_bit():
    w = nn.Parameter(torch.randn(1000, device="cuda"))
    opt = ta.ABSGD([w], lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cuda")
    scaler.scale((w * w).sum()).backward()
    scaler.step(opt)
    scaler.update()
    before, buffer = w.detach().clone(), opt.state[w]["momentum_buffer"].clone()
    w.grad = torch.full_like(w, math.inf)
    scaler.scale(torch.ones((), device="cuda"))
    scaler.step(opt)
    assert torch.equal(w, before)
    assert torch.equal(opt.state[w]["momentum_buffer"], buffer)


@card
def test_a_training_step_does_not_synchronise():
    model = nn.Linear(20, 5).cuda()
    opt = ta.ABSGD(model.parameters(), lr=0.1, momentum=0.9, lam=1.0)
    x, y = torch.randn(32, 20, device="cuda"), torch.randint(5, (32,), device="cuda")

    def step() -> None:
        opt.zero_grad()
        opt.weigh(F.cross_entropy(model(x), y, reduction="none")).backward()
        opt.step()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@card
def test_a_captured_graph_follows_lr_and_lambda():
    def run(captured: bool) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        w = nn.Parameter(torch.randn(50, device="cuda"))
        lr = torch.tensor(0.1, device="cuda", dtype=torch.float64)
        opt = ta.ABSGD([w], lr=lr, momentum=0.9, lam=1.0)
        x = torch.randn(64, 50, device="cuda")

        def step() -> None:
            opt.zero_grad(set_to_none=False)
            opt.weigh((x @ w) ** 2).backward()
            opt.step()

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        replay = step
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            replay = graph.replay
        for rate, lam in ((0.1, 1.0), (0.05, 2.0), (0.01, 4.0)):
            lr.fill_(rate)
            opt.lam.fill_(lam)
            replay()
        return w.detach(), opt.log_s.clone()

    for got, wanted in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(got, wanted)
