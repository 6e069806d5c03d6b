"""Routers and their losses: what they pick, what balance costs, and what padding does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from composer.errors import ComposerError
from composer.mixlora.router import Picks, Router, RouterSettings
from composer.mixlora.router_losses import balance_loss, loads, z_loss
from composer.mixlora.rows import Routed, Rows

WIDTH = 5


def router(**settings: Any) -> Router:
    torch.manual_seed(0)
    return Router(RouterSettings(experts=4, init_std=1.0, **settings), WIDTH).eval()


def hidden(rows: int = 2, tokens: int = 7) -> Tensor:
    return torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(1))


def routed(logits: Tensor, k: int, mask: Tensor | None = None, host: str = "h") -> Routed:
    return Routed(host=host, adapter="a", logits=logits, chosen=logits.topk(k).indices, mask=mask)


def told(picks: Picks) -> Routed:
    return Routed(host="h", adapter="a", logits=picks.logits, chosen=picks.preferred, mask=None)


def test_top_k_weights_sum_to_one() -> None:
    picks = router(top_k=2)(hidden())
    assert picks.weights.dtype == torch.float32
    assert torch.allclose(picks.weights.sum(-1), torch.ones(2, 7))
    assert picks.rest is None


def test_all_experts_are_the_dense_mixture() -> None:
    one = router(top_k=4)
    picks = one(hidden())
    dense = picks.logits.softmax(-1).gather(-1, picks.chosen)
    assert torch.allclose(picks.weights, dense)


def test_top_p_takes_experts_until_their_sum_exceeds_it() -> None:
    one = router(strategy="mixlora-dynamic", top_p=0.5)
    picks = one(hidden())
    p = picks.logits.softmax(-1)
    for chosen, weights, row in zip(
        picks.chosen.flatten(0, 1), picks.weights.flatten(0, 1), p.flatten(0, 1), strict=True
    ):
        order = row.argsort(descending=True).tolist()
        wanted: list[int] = []
        while not wanted or float(row[wanted].sum().detach()) <= 0.5:
            wanted.append(order[len(wanted)])
        assert [e for e in chosen.tolist() if e >= 0] == wanted
        assert torch.allclose(weights[: len(wanted)], row[wanted])
        assert not weights[len(wanted) :].any()


def test_dynamic_weights_are_not_made_to_sum_to_one_unless_the_rest_is_given_away() -> None:
    one = router(strategy="mixlora-dynamic", top_p=0.4)
    assert (one(hidden()).weights.sum(-1) < 0.99).any()
    one.settings = replace(one.settings, remainder=True)
    picks = one(hidden())
    assert picks.rest is not None
    assert torch.allclose(picks.weights.sum(-1) + picks.rest, torch.ones(2, 7))


def test_switch_keeps_to_its_capacity_in_each_sequence() -> None:
    one = router(strategy="mixlora-switch", capacity=2)
    picks = one(hidden(rows=3, tokens=12))
    for chosen, preferred in zip(picks.chosen[..., 0], picks.preferred[..., 0], strict=True):
        for expert in range(4):
            wanted = (preferred == expert).nonzero().flatten()
            assert (chosen == expert).nonzero().flatten().tolist() == wanted[:2].tolist()
    best = picks.logits.softmax(-1).max(-1).values
    assert picks.rest is not None
    assert torch.allclose(picks.weights[..., 0] + picks.rest, best)


def test_padding_takes_no_room() -> None:
    one = router(strategy="mixlora-switch", capacity=1)
    seen = hidden(rows=1, tokens=1).expand(1, 3, WIDTH)  # all three want the same expert
    assert (one(seen).chosen[0, :, 0] >= 0).tolist() == [True, False, False]
    picks = one(seen, torch.tensor([[False, True, True]]))
    assert (picks.chosen[0, 1:, 0] >= 0).tolist() == [True, False]


def test_switch_shakes_the_router_in_training_alone() -> None:
    one = router(strategy="mixlora-switch", jitter=0.5)
    assert torch.equal(one(hidden()).logits, one(hidden()).logits)
    one.train()
    assert not torch.equal(one(hidden()).logits, one(hidden()).logits)


def test_routers_are_float32_whatever_the_model_is() -> None:
    one = router().half()
    assert one.weight.dtype == torch.float32
    assert one(hidden().half()).logits.dtype == torch.float32


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_uniform_router_costs_the_number_of_choices(k: int) -> None:
    # each expert is each choice of as many tokens, and all are as probable
    chosen = torch.stack([(torch.arange(8) + j) % 4 for j in range(k)], dim=-1)[None]
    even = Routed(host="h", adapter="a", logits=torch.zeros(1, 8, 4), chosen=chosen, mask=None)
    assert float(balance_loss([even])) == pytest.approx(k)


def test_a_collapsed_router_costs_as_many_times_as_there_are_experts() -> None:
    logits = torch.zeros(1, 8, 4)
    logits[..., 2] = 50.0
    assert float(balance_loss([routed(logits, 1)])) == pytest.approx(4.0)
    assert float(balance_loss([routed(logits, 2)])) > 2.0


def test_the_loss_of_a_reference() -> None:
    """As transformers computes it for Mixtral, over all layers together and without padding."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    torch.manual_seed(3)
    layers = [torch.randn(2, 5, 4) for _ in range(3)]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    given = tuple(layer.reshape(-1, 4) for layer in layers)
    for k in (1, 2):
        for padding in (None, mask):
            told = None if padding is None else padding.bool()
            found = balance_loss([routed(layer, k, told) for layer in layers])
            wanted = load_balancing_loss_func(given, 4, k, padding)
            assert torch.allclose(found, torch.as_tensor(wanted))


def test_padding_does_not_change_the_losses() -> None:
    logits = torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]).bool()
    for loss in (balance_loss, z_loss):
        short = loss([routed(logits[:, :3], 2)])
        other = logits.clone()
        other[:, 3:] = 100.0
        assert torch.allclose(loss([routed(logits, 2, mask)]), short)
        assert torch.allclose(loss([routed(other, 2, mask)]), short)


def test_the_loss_evens_a_router_out() -> None:
    one = router(top_k=2)
    seen = torch.randn(4, 64, WIDTH)
    optimizer = torch.optim.SGD(one.parameters(), lr=1.0)
    shares: list[float] = []
    for _ in range(100):
        tape = [told(one(seen))]
        shares.append(float(loads(tape)["h"].max()))
        loss = balance_loss(tape)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert shares[-1] < shares[0]
    assert shares[-1] < 0.32


def test_layers_may_be_balanced_each() -> None:
    collapsed = []
    for layer in range(4):
        logits = torch.zeros(1, 8, 4)
        logits[..., layer] = 50.0
        collapsed.append(routed(logits, 1, host=f"h{layer}"))
    assert float(balance_loss(collapsed)) == pytest.approx(1.0)  # together they are even
    assert float(balance_loss(collapsed, over="layer")) == pytest.approx(4.0)


def test_z_loss_is_the_square_of_the_logarithm_of_the_sum() -> None:
    logits = torch.randn(2, 3, 4)
    wanted = (logits.exp().sum(-1).log() ** 2).mean()
    assert torch.allclose(z_loss([routed(logits, 1)]), wanted)


def test_nothing_routed_costs_nothing() -> None:
    assert float(balance_loss([])) == 0.0
    assert float(z_loss([])) == 0.0


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"top_k": 5}, "top_k"),
        ({"top_k": 0}, "top_k"),
        ({"experts": 0}, "experts"),
        ({"strategy": "mixtral-8x7"}, "strategy"),
        ({"strategy": "mixlora-dynamic", "top_p": 0.0}, "top_p"),
        ({"capacity": 0}, "capacity"),
        ({"jitter": 1.0}, "jitter"),
        ({"balance": -1.0}, "balance"),
        ({"init_std": float("nan")}, "init_std"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ComposerError, match=word):
        RouterSettings(**{"experts": 4, **settings})


def test_rows_of_a_batch() -> None:
    device = torch.device("cpu")
    rows = Rows(["a", "b"])
    with pytest.raises(ComposerError, match="4 rows"):
        rows.of(4, device)
    rows.assign(["a", None, "a"])
    found = rows.of(3, device)
    assert {name: index.tolist() for name, index in found.items() if index is not None} == {
        "a": [0, 2],
        None: [1],
    }
    doubled = rows.of(6, device)  # as a search of two beams repeats rows
    assert doubled["a"] is not None
    assert doubled["a"].tolist() == [0, 1, 4, 5]
    with pytest.raises(ComposerError, match="7 rows and 3"):
        rows.of(7, device)
    rows.assign("b")
    assert rows.of(7, device) == {"b": None}
    rows.assign(None)
    assert rows.of(7, device) == {None: None}
    with pytest.raises(ComposerError, match='"c"'):
        rows.assign(["a", "c"])
    with pytest.raises(ComposerError, match="each row"):
        rows.assign([])


def test_a_mask_of_another_shape() -> None:
    rows = Rows(["a"])
    with rows.record_routing(torch.ones(2, 5)):
        assert rows.mask_of("h", (2, 5)) is not None
        with pytest.raises(ComposerError, match=r"\(2, 5\).*\(2, 7\)"):
            rows.mask_of("h", (2, 7))
    assert rows.mask_of("h", (2, 7)) is None
