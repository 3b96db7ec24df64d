"""What a training takes, counted without computing: the same as when it is computed."""

from __future__ import annotations

import functools
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from editkit.training import estimate
from editkit.training.as_on_gpu import AsOnGpu
from editkit.training.live import Live, NotThere, ReadAsUnknown
from editkit.training.method import Method
from editkit.training.plan import Plan


class Painting(Method):
    """Convolutions, a norm and attention behind a frozen network."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(optimizer=functools.partial(torch.optim.AdamW, lr=1e-3))
        self.frozen = nn.Conv2d(3, width, 3, padding=1)
        self.net = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.SiLU())
        self.head = nn.Conv2d(width, 3, 1)

    def trainable(self):
        return {"net": [*self.net.parameters(), *self.head.parameters()]}

    def loss(self, batch):
        x = self.net(self.frozen(batch["image"]))
        return {"l2": (self.head(x) - batch["image"]).square().mean((1, 2, 3))}

    def dummy_batch(self):
        return {"image": torch.rand(2, 3, 16, 16), "key": ["a", "b"]}


def ready(device: str) -> Method:
    method = Painting()
    method.freeze_rest()
    return method.train().to(device)


def test_only_what_is_new_counts():
    old = torch.zeros(1000)
    with Live() as live:
        old.view(10, 100).t()
        old.add_(1)
        assert live.peak == 0
        new = old + 1
        seen = new[10:]
        assert live.now == live.peak == 4000
        del new
        assert live.now == 4000
        del seen
        assert live.now == 0 and live.peak == 4000


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("size", [1, 2, 6])
def test_what_is_counted_on_no_device_is_what_a_training_on_the_processor_holds_and_computes(accumulate, size):
    plan = Plan(batch_size=size, accumulate=accumulate)
    counted = estimate.batch(ready("meta"), plan)
    method = ready("cpu")
    given = estimate.batch_of(method, size)
    assert len(given["image"]) == len(given["key"]) == size
    weights = estimate.trained_parameters(method)
    gradients = sum(weight.nbytes for weight in weights)
    for weight in weights:
        weight.grad = torch.zeros_like(weight) if accumulate > 1 else None
    gc.collect()
    with Live() as live:
        (update,) = method.updates(given)
        (update.total() / accumulate).backward()
    held = live.peak if accumulate > 1 else live.peak - gradients
    assert counted.held == pytest.approx(max(held, 0), rel=0.02) and counted.held > size * 16 * 16 * 16 * 4
    for weight in weights:
        weight.grad = None
    with FlopCounterMode(display=False) as flops:
        method.loss(given)["l2"].mean().backward()
    assert counted.flops == flops.get_total_flops() == live.flops > 0 and counted.updates == 1


@pytest.mark.parametrize(("keywords", "state"), [({}, 8), ({"amsgrad": True}, 12)])
def test_the_optimizer_is_that_of_a_real_step(keywords, state):
    weights = [nn.Parameter(torch.rand(40, 30)), nn.Parameter(torch.rand(30))]
    found = estimate.optimizer(functools.partial(torch.optim.AdamW, lr=1e-3, **keywords), weights, eight_bit=False)
    assert found.state == pytest.approx(state * 1230, rel=0.01) and found.step >= 4 * 1230
    fused = estimate.optimizer(functools.partial(torch.optim.AdamW, lr=1e-3, fused=True), weights, eight_bit=False)
    assert fused.state == pytest.approx(8 * 1230, rel=0.01) and fused.step == 0
    assert all(weight.grad is None for weight in weights)


def test_optimizers_with_less_state():
    weights = [nn.Parameter(torch.rand(64, 64))]
    assert estimate.optimizer(functools.partial(torch.optim.SGD, lr=1.0), weights, eight_bit=False).state == 0
    assert (
        estimate.optimizer(functools.partial(torch.optim.SGD, lr=1.0, momentum=0.9), weights, eight_bit=False).state == 4 * 4096
    )
    assert (
        estimate.optimizer(functools.partial(torch.optim.AdamW, lr=1.0), weights, eight_bit=True).state == 4096 * 2 + 4096 // 32
    )


@pytest.mark.parametrize("trained", [True, False])
def test_half_copies_are_kept_of_the_weights_that_autocast_keeps_them_of(trained):
    def held(device, context):
        layer, x = nn.Linear(64, 64, device=device).requires_grad_(trained), torch.zeros(1, 64, device=device)
        gc.collect()
        with context(), Live() as live:
            layer(x)
            gc.collect()
            return live.now

    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    counted = held("meta", functools.partial(AsOnGpu, "bf16"))
    assert counted == held("cpu", autocast) == (2 * 64 * 65 if trained else 0)


def test_mixed_precision_has_the_dtypes_of_autocast():
    mode, x = AsOnGpu("bf16"), torch.zeros(2, 8, 8, 8, device="meta", requires_grad=True)
    layer, norm = nn.Conv2d(8, 8, 1, device="meta"), nn.GroupNorm(2, 8, device="meta")
    with mode, mode.replacing_autocast():
        assert layer(x).dtype == torch.bfloat16 and norm(layer(x)).dtype == torch.float32
        with torch.autocast("meta", enabled=False):
            assert layer(x).dtype == torch.float32
        assert layer(x).dtype == torch.bfloat16
    with AsOnGpu(32):
        assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("precision", [32, "bf16"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_keeps_no_map(precision, masked):
    q, k, v = (torch.zeros(2, 4, 512, 16, device="meta", requires_grad=True) for _ in range(3))
    mask = torch.ones(1, 1, 1, 512, dtype=torch.bool, device="meta") if masked else None
    gc.collect()
    with AsOnGpu(precision), Live() as live:
        out = F.scaled_dot_product_attention(q, k, v, mask)
        torch.autograd.backward(out.float().sum())
    whole_map = 2 * 4 * 512 * 512 * 4
    assert out.shape == q.shape and q.grad.shape == q.shape
    assert live.peak < whole_map * (1.5 if masked else 0.5)
    assert live.flops == (4 + 10) * 2 * 4 * 512 * 512 * 16


def test_values_read_back_are_unknown_and_never_made_up():
    with ReadAsUnknown():
        assert torch.zeros(2, dtype=torch.bool, device="meta").tolist() == [False, False]
        assert torch.zeros((), device="meta").item() != torch.zeros((), device="meta").item()
        with pytest.raises(NotThere):
            int(torch.zeros((), dtype=torch.long, device="meta"))


def test_memory_has_the_average_and_the_exchange_where_they_are():
    method = ready("meta")
    found, state = estimate.parts(method), estimate.Optimizer(800, 0)
    assert found["net"].trained == found["net"].parameters == 16 * 16 * 9 + 16 + 32 and found["frozen"].trained == 0

    def rows(**changes):
        return estimate.memory(found, None, state, Plan(batch_size=8, **changes), 100)

    assert rows()["gradients"] == 100 and rows()["optimiser"] == 800 and rows()["frozen networks"] == 4 * (3 * 16 * 9 + 16)
    assert "moving average" not in rows() and "moving average" not in rows(ema=0.99, ema_device="cpu")
    assert rows(ema=0.99)["moving average"] == 100 and rows(devices=2)["gradients in exchange"] == 100
