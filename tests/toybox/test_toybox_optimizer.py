"""Muon against oracles: the singular value decomposition, a naive step, and torch's own Muon."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from composer.training.muon import Muon, orthogonalise
from toybox.optimizer import MuonAdamW


def nearest_orthogonal(matrix: Tensor) -> Tensor:
    """U Vᵀ of the singular value decomposition."""
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u @ vh).float()


def even_matrix(rows: int, columns: int, seed: int, spread: float = 0.3) -> Tensor:
    """A matrix whose singular values lie between 1 - spread and 1 + spread."""
    generator = torch.Generator().manual_seed(seed)
    u, s, vh = torch.linalg.svd(torch.randn(rows, columns, generator=generator), False)
    return u @ torch.diag(torch.linspace(1 - spread, 1 + spread, len(s))) @ vh


@pytest.mark.parametrize(("rows", "columns"), [(8, 20), (20, 8), (12, 12), (1, 5)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 300.0])
def test_orthogonalise_is_the_polar_factor(rows: int, columns: int, size: float) -> None:
    batch = size * torch.stack([even_matrix(rows, columns, seed, 0.5) for seed in range(3)])
    wanted = torch.stack([nearest_orthogonal(matrix) for matrix in batch])
    assert torch.allclose(orthogonalise(batch, iterations=12), wanted, atol=2e-3)


def test_five_iterations_bring_most_directions_near_to_one() -> None:
    matrix = torch.randn(1, 32, 64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.max() < 1.01
    assert values.min() > 0.6


def test_null_directions_and_null_matrices_stay_null() -> None:
    assert not orthogonalise(torch.zeros(2, 4, 6)).any()
    matrix = even_matrix(6, 10, 1)
    matrix[3] = 0
    update = orthogonalise(matrix[None])[0]
    assert update.isfinite().all()
    assert update[3].abs().max() < 1e-6


def naive_step(
    weight: Tensor, momentum: Tensor, grad: Tensor, *, lr: float, beta: float, decay: float
) -> tuple[Tensor, Tensor]:
    """One step of Muon, written out for one weight: (new weight, new momentum)."""
    momentum = beta * momentum + (1 - beta) * grad
    look = (1 - beta) * grad + beta * momentum
    matrix = look.reshape(len(look), -1)
    scale = math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))
    update = nearest_orthogonal(matrix).reshape(weight.shape)
    return weight * (1 - lr * decay) - lr * scale * update, momentum


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_muon_steps_are_those_of_the_naive_oracle(decay: float) -> None:
    shapes = [(8, 12), (12, 8), (8, 12), (8, 4, 3, 3), (16, 8, 1, 1)]
    weights = [nn.Parameter(torch.randn(s)) for s in shapes]
    wanted = [(w.detach().clone(), torch.zeros_like(w)) for w in weights]
    optimizer = Muon(weights, lr=0.05, momentum=0.9, decay=decay)
    for step in range(4):
        for index, weight in enumerate(weights):
            rows, columns = weight.shape[0], weight[0].numel()
            # nearly the same each time, so that the momentum stays well conditioned
            weight.grad = (
                even_matrix(rows, columns, index) + 0.05 * even_matrix(rows, columns, 9 + step)
            ).reshape(weight.shape)
        optimizer.step()
        wanted = [
            naive_step(w, m, p.grad, lr=0.05, beta=0.9, decay=decay)
            for (w, m), p in zip(wanted, weights, strict=True)
        ]
        for weight, (expected, _) in zip(weights, wanted, strict=True):
            assert torch.allclose(weight, expected, atol=3e-4)


def test_a_weight_without_a_gradient_is_left_alone() -> None:
    moved, still = (nn.Parameter(torch.randn(8, 8)) for _ in range(2))
    before = still.detach().clone()
    moved.grad = even_matrix(8, 8, 0)
    Muon([moved, still], lr=0.1).step()
    assert torch.equal(still, before)


def test_several_processes_leave_it_alone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    still, moved = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    moved.grad = torch.eye(3, 2)
    Muon([still, moved], lr=0.1, decay=0.5).step()
    assert torch.equal(still, torch.ones(3, 2)) and not torch.equal(moved, torch.ones(3, 2))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
@pytest.mark.parametrize(("rows", "columns"), [(16, 24), (24, 16), (16, 16)])
def test_it_is_torchs_own_muon_on_matrices(rows: int, columns: int) -> None:
    ours = nn.Parameter(torch.zeros(rows, columns))
    theirs = nn.Parameter(torch.zeros(rows, columns))
    reference = torch.optim.Muon(
        [theirs],
        lr=0.1,
        weight_decay=0.0,
        momentum=0.95,
        nesterov=True,
        # coefficients that converge, where Muon's usual ones hover about one
        ns_coefficients=(15 / 8, -10 / 8, 3 / 8),
        ns_steps=12,
        adjust_lr_fn="original",
    )
    optimizer = Muon([ours], lr=0.1)
    for step in range(3):
        grad = even_matrix(rows, columns, 0) + 0.1 * even_matrix(rows, columns, 1 + step)
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        optimizer.step()
        reference.step()
    # theirs multiplies in bfloat16
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


class Net(nn.Module):
    """One parameter of each sort that is told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 16, 3)
        self.block = nn.Conv2d(16, 16, 3)
        self.norm = nn.GroupNorm(4, 16)
        self.linear = nn.Linear(16, 16)
        self.narrow = nn.Linear(16, 4)
        self.embedding = nn.Embedding(10, 16)
        self.heads = nn.ModuleDict({"first": nn.Linear(16, 8)})
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(16, 16), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.block(self.conv_in(x))).mean((2, 3))
        x = self.linear(x) + self.embedding(torch.arange(len(x)))
        return self.heads["first"](x).sum() * self.scale + self.narrow(x).pow(2).sum()


def test_hidden_matrices_go_to_muon_and_all_else_to_adamw() -> None:
    net = Net()
    optimizer = MuonAdamW(net, muon_lr=0.1, adam_lr=0.01)
    by_id = {id(p): name for name, p in net.named_parameters()}
    muon, adam = (
        {by_id[id(p)] for group in part.param_groups for p in group["params"]}
        for part in optimizer.parts
    )
    assert muon == {"block.weight", "linear.weight"}
    assert muon | adam == set(by_id.values()) - {"frozen"}
    assert muon.isdisjoint(adam)


def trained(net: Net, optimizer: MuonAdamW, begin: int, steps: int) -> None:
    for step in range(begin, begin + steps):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        net(x).backward()
        optimizer.step(1.0 / (1 + step))


def test_the_rate_is_a_factor_and_gradients_are_cleared() -> None:
    torch.manual_seed(0)
    net = Net()
    before = copy.deepcopy(net.state_dict())
    optimizer = MuonAdamW(net, muon_lr=0.1, adam_lr=0.01)
    net(torch.randn(4, 3, 8, 8)).backward()
    optimizer.step(0.0)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    net(torch.randn(4, 3, 8, 8)).backward()
    optimizer.step(0.5)
    assert [part.param_groups[0]["lr"] for part in optimizer.parts] == [0.05, 0.005]


def test_training_goes_on_the_same_after_its_state_is_put_back() -> None:
    torch.manual_seed(1)
    net = Net()
    optimizer = MuonAdamW(net, muon_lr=0.1, adam_lr=0.01)
    trained(net, optimizer, 0, 3)
    stored = {name: value.clone() for name, value in optimizer.tensors().items()}
    assert all(isinstance(value, Tensor) for value in stored.values())
    again = copy.deepcopy(net)
    other = MuonAdamW(again, muon_lr=0.1, adam_lr=0.01)
    other.load_tensors(stored)
    trained(net, optimizer, 3, 3)
    trained(again, other, 3, 3)
    for key, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
