"""The operators on a card against those on the CPU. Without one, only the status is tested."""

import math
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_absgd as ta
from torch_absgd._cuda import cuda_status

# tests/gpu.sh says which device the tests are for: none of them then skips itself for want of it.
ASKED = "TORCH_ABSGD_TEST_DEVICE" in os.environ
DEVICE = os.environ.get("TORCH_ABSGD_TEST_DEVICE", "cuda")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def card(test):
    """Needs a card, or rehearses on the CPU what it would do on one."""
    missing = not ASKED and cuda_status() != "loaded"
    skip = pytest.mark.skipif(missing, reason=f"no CUDA operators: {cuda_status()}")
    return pytest.mark.cuda(skip(test))


def card_alone(test):
    """What no CPU can rehearse: streams, graphs, synchronisation."""
    return card(pytest.mark.skipif(DEVICE == "cpu", reason="rehearsed on the CPU")(test))


def test_status_is_a_sentence_or_loaded():
    status = cuda_status()
    assert status == "loaded" or (status.endswith(".") and " " in status)
    if not torch.cuda.is_available():
        assert status != "loaded"


def in_a_new_process(program: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_import_asks_nobody_for_a_card():
    in_a_new_process(
        "import torch\n"
        "def asked(*_): raise AssertionError('import asked for a card, which poisons fork')\n"
        "torch.cuda.is_available = torch._C._cuda_getDeviceCount = asked\n"
        "import torch_absgd\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert not getattr(torch.cuda, '_is_in_bad_fork', lambda: False)()"
    )


@card
def test_a_fork_after_the_import_can_use_the_card():
    in_a_new_process(
        "import os, torch, torch_absgd\n"
        "if os.fork() == 0:\n"
        f"    x = torch.zeros(2, 3, device={DEVICE!r})\n"
        f"    y = torch.zeros(2, dtype=torch.long, device={DEVICE!r})\n"
        "    ok = torch_absgd.PerSampleCrossEntropy()(x, y).isfinite().all().item()\n"
        "    os._exit(0 if ok else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))"
    )


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

    for got, wanted in zip(run(DEVICE), run("cpu"), strict=True):
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

    torch.testing.assert_close(run(DEVICE), run("cpu"))


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
        for device in (DEVICE, "cpu"):
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
@pytest.mark.parametrize("soft", [False, True])
def test_channels_last_logits_are_the_cpus(soft):
    logits = torch.randn(2, 21, 13, 9).to(memory_format=torch.channels_last)
    target = logits.softmax(1) if soft else torch.randint(21, (2, 13, 9))
    results = []
    for device, x in ((DEVICE, logits), ("cpu", logits.contiguous())):
        x = x.to(device).requires_grad_()
        losses = ta.PerSampleCrossEntropy()(x, target.to(device))
        losses.sum().backward()
        assert x.grad.stride() == x.stride()
        results.append((losses.detach().cpu(), x.grad.cpu()))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted)


@card_alone
def test_an_invalid_target_gives_nan_in_its_sample_alone():
    logits = torch.randn(4, 5, device=DEVICE)
    losses = ta.PerSampleCrossEntropy()(logits, torch.tensor([0, 7, -3, 4], device=DEVICE))
    assert losses.isnan().tolist() == [False, True, True, False]


@card
@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "sigmoid per element"])
def test_attentional_loss_in_one_call_is_the_cpus(kind):
    def run(device: str) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        per = "element" if "element" in kind else "sample"
        loss = ta.PerSampleBCE(ignore_index=-1, per=per)
        loss = ta.PerSampleCrossEntropy() if kind == "softmax" else loss
        criterion = ta.AttentionalLoss(loss, lam=1.0).to(device)
        x = torch.randn(32, 6).to(device).requires_grad_()
        y = torch.randint(6, (32,)) if kind == "softmax" else torch.randint(2, (32, 6))
        y[3] = -100 if kind == "softmax" else -1
        loss = criterion(x, y.to(device))
        loss.backward()
        return loss.detach().cpu(), x.grad.cpu()

    for got, wanted in zip(run(DEVICE), run("cpu"), strict=True):
        torch.testing.assert_close(got, wanted)


@card
def test_amp_overflow_leaves_every_bit():
    w = nn.Parameter(torch.randn(1000, device=DEVICE))
    opt = ta.ABSGD([w], lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler(DEVICE)
    scaler.scale((w * w).sum()).backward()
    scaler.step(opt)
    scaler.update()
    before, buffer = w.detach().clone(), opt.state[w]["momentum_buffer"].clone()
    w.grad = torch.full_like(w, math.inf)
    scaler.scale(torch.ones((), device=DEVICE))
    scaler.step(opt)
    assert torch.equal(w, before)
    assert torch.equal(opt.state[w]["momentum_buffer"], buffer)


@card
@pytest.mark.parametrize("lam", [1.0, ta.EffectiveSampleSize(0.5)])
def test_guards_and_the_base_measure_are_the_cpus(lam):
    def run(device: str) -> list[Tensor]:
        torch.manual_seed(0)
        guards = {"max_weight": 1.5, "keep_loss": True}
        opt = ta.ABSGD([nn.Parameter(torch.zeros(1, device=device))], lam=lam, **guards)
        for n in (10, 3000):
            losses = torch.rand(n).mul(4).to(device).requires_grad_()
            total = opt.weigh(losses, weight=torch.rand(n).to(device))
            total.backward()
        return [total.detach().cpu(), losses.grad.cpu(), opt.log_s.cpu(), opt.lam.cpu()]

    for got, wanted in zip(run(DEVICE), run("cpu"), strict=True):
        torch.testing.assert_close(got, wanted)


@card
@pytest.mark.parametrize("amount", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_float32_losses(amount):
    x = torch.randn(64, 100, device=DEVICE).to(amount).requires_grad_()
    losses = ta.PerSampleCrossEntropy()(x, torch.randint(100, (64,), device=DEVICE))
    losses.sum().backward()
    assert losses.dtype is torch.float32 and x.grad.dtype is amount


@card
def test_results_have_the_same_bits_run_to_run():
    def run() -> list[Tensor]:
        torch.manual_seed(0)
        x = torch.randn(3000, 50).to(DEVICE).requires_grad_()
        criterion = ta.AttentionalLoss(ta.PerSampleCrossEntropy(), lam=0.5).to(DEVICE)
        loss = criterion(x, torch.randint(50, (3000,)).to(DEVICE))
        loss.backward()
        return [loss.detach(), x.grad, criterion.log_s]

    for got, wanted in zip(run(), run(), strict=True):
        assert torch.equal(got, wanted)


@card_alone
@pytest.mark.parametrize("n", [64, 5000])
@pytest.mark.parametrize("lam", [0.5, ta.EffectiveSampleSize(0.6)])
def test_an_attentional_loss_is_captured_and_does_not_synchronise(lam, n):
    def run(is_captured: bool) -> list[Tensor]:
        torch.manual_seed(0)
        x = torch.randn(n, 30).to(DEVICE).requires_grad_()
        y = torch.randint(30, (n,)).to(DEVICE)
        criterion = ta.AttentionalLoss(ta.PerSampleCrossEntropy(), lam=lam).to(DEVICE)
        scale = torch.tensor(1.0, device=DEVICE)

        def step() -> None:
            (scale * criterion(x, y)).backward()

        with torch.cuda.stream(torch.cuda.Stream()):
            step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        replay = step
        if is_captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            replay = graph.replay
        for amount in (2.0, 1024.0):
            scale.fill_(amount)
            replay()
        return [x.grad, criterion.log_s]

    for got, wanted in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(got, wanted)


class Training:
    """A model, its optimizer and a batch; each step() is one of training."""

    def __init__(self, lr: float | Tensor, device: str = DEVICE) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(20, 5).to(device)
        self.criterion = ta.PerSampleCrossEntropy()
        self.opt = ta.ABSGD(self.model.parameters(), lr=lr, momentum=0.9, lam=1.0)
        self.x = torch.randn(32, 20).to(device)
        self.y = torch.randint(5, (32,)).to(device)

    def step(self) -> None:
        self.opt.zero_grad(set_to_none=False)
        self.opt.weigh(self.criterion(self.model(self.x), self.y)).backward()
        self.opt.step()

    def captured(self) -> Callable[[], None]:
        """The replay of a graph of one step."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay

    def state(self) -> list[Tensor]:
        tensors = [*self.model.parameters(), self.opt.log_s]
        return [t.detach().clone() for t in tensors]


@card_alone
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1), "on the device"])
def test_a_training_step_does_not_synchronise(lr):
    training = Training(torch.tensor(0.1, device=DEVICE) if isinstance(lr, str) else lr)
    training.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.step()
        training.opt.lam = 2.0
        training.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@card_alone
def test_a_side_stream_is_used_throughout():
    on_default = Training(0.1)
    on_side = Training(0.1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # work on another stream would get in before
        on_side.x.add_(1)
        on_side.step()
    torch.cuda.current_stream().wait_stream(stream)
    on_default.x.add_(1)
    on_default.step()
    for got, wanted in zip(on_side.state(), on_default.state(), strict=True):
        assert torch.equal(got, wanted)


@card_alone
def test_a_captured_graph_follows_lr_and_lambda():
    def run(is_captured: bool) -> list[Tensor]:
        lr = torch.tensor(0.1, device=DEVICE, dtype=torch.float64)
        training = Training(lr)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                training.step()
        torch.cuda.current_stream().wait_stream(stream)
        replay = training.captured() if is_captured else training.step
        for rate, lam in ((0.1, 1.0), (0.05, 2.0), (0.01, 4.0)):
            lr.fill_(rate)
            training.opt.lam = lam
            replay()
        return training.state()

    for got, wanted in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(got, wanted)


@card_alone
def test_a_first_step_cannot_be_captured_and_changes_nothing():
    training = Training(0.1)
    training.step()  # the model and λ are ready, the momentum is not
    training.opt.state.clear()
    before = [p.detach().clone() for p in training.model.parameters()]
    refused = pytest.raises(RuntimeError, match="take one step before the capture")
    with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
        training.opt.step()
    for p, wanted in zip(training.model.parameters(), before, strict=True):
        assert torch.equal(p, wanted)


@card_alone
def test_a_captured_graph_follows_a_restart():
    def run(is_captured: bool) -> list[Tensor]:
        training = Training(torch.tensor(0.1, device=DEVICE, dtype=torch.float64))
        with torch.cuda.stream(torch.cuda.Stream()):
            training.step()
        torch.cuda.synchronize()
        replay = training.captured() if is_captured else training.step
        for _ in range(2):
            replay()
            training.opt.restart(2.0, reset_momentum=True)
        replay()
        return training.state()

    for got, wanted in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(got, wanted)


@card_alone
def test_more_than_two_to_the_31_logits():
    N, C = 2**16 + 1, 2**15
    if torch.cuda.mem_get_info()[0] < 5 * N * C * 2:
        pytest.skip("the card has too little memory")
    x = torch.zeros(N, C, device=DEVICE, dtype=torch.float16)
    x[-1, 7] = 3.0
    x.requires_grad_()
    y = torch.full((N,), 7, device=DEVICE)
    losses = ta.PerSampleCrossEntropy()(x, y)
    wanted = F.cross_entropy(x[-1:].float(), y[-1:], reduction="none")
    torch.testing.assert_close(losses[-1:], wanted.detach())
    losses.sum().backward()
    assert x.grad[-1, 7] < -0.5 and x.grad[-1, 8] > 0


@card_alone
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one card")
def test_the_second_card_while_the_first_is_current():
    first, second = Training(0.1, "cuda:0"), Training(0.1, "cuda:1")
    first.step()
    second.step()
    for got, wanted in zip(second.state(), first.state(), strict=True):
        torch.testing.assert_close(got.cpu(), wanted.cpu())
