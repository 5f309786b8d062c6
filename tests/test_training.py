from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from aloe.training import cosine_rate, generator_for, load_state, save_state, set_rate


def network(width: int = 5, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))


def adam(module: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(module.parameters(), lr=1e-2, fused=True)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(8, 3, generator=generator_for("data", step))
        loss = (module(x) - x.sum(-1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def assert_same(one: dict, other: dict) -> None:
    """Nested state dicts, to the bit."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_same(value, other[key])
        elif isinstance(value, torch.Tensor):
            assert value.dtype == other[key].dtype
            assert torch.equal(value, other[key]), key


def test_generator_is_a_function_of_its_key_alone() -> None:
    first = torch.randn(4, generator=generator_for(3, "critic", 1, 17))
    torch.manual_seed(999)
    torch.randn(10)
    again = torch.randn(4, generator=generator_for(3, "critic", 1, 17))
    assert torch.equal(first, again)


def test_generator_leaves_global_randomness_alone() -> None:
    before = torch.get_rng_state()
    torch.randn(4, generator=generator_for(0))
    assert torch.equal(before, torch.get_rng_state())


def test_generators_of_different_keys_differ() -> None:
    keys = [(0, "critic", 1), (0, "critic", 2), (1, "critic", 1), (0, "actor", 1), (0, "critic", "1"), (0, 1, "critic")]
    keys += [(1, 11), (11, 1), (0, "critic")]
    assert len({generator_for(*key).initial_seed() for key in keys}) == len(keys)


def test_generator_is_the_same_on_every_machine() -> None:
    # The first 8 bytes of sha256('[0, "critic", 1]'), little-endian, without the lowest bit.
    assert generator_for(0, "critic", 1).initial_seed() == 1853495510779475270


def test_rate_warms_up_and_falls_to_its_floor() -> None:
    rates = [cosine_rate(step, 1000, peak=2.0, warmup=100) for step in range(1001)]
    assert rates[0] == pytest.approx(2.0 / 100)
    assert rates[49] == pytest.approx(1.0, rel=0.01)  # half of the warm-up
    # half way: 0.05 + 0.95 * 0.5 (1 + cos(pi / 2)) = 0.525
    assert rates[500] == pytest.approx(2.0 * 0.525)
    assert rates[1000] == pytest.approx(2.0 * 0.05)
    assert all(later <= earlier for earlier, later in pairwise(rates[100:]))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_rate_of_a_very_short_phase_is_positive(steps: int) -> None:
    for step in range(steps):
        assert 0 < cosine_rate(step, steps, peak=1.0, warmup=100) <= 1


def test_rate_is_set_in_every_group() -> None:
    module = network()
    optimizer = torch.optim.SGD([{"params": [p]} for p in module.parameters()], lr=1.0)
    set_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25] * 4


def test_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    module, other = network(), network(seed=1)
    optimizer, path = adam(module), tmp_path / "deep" / "state.safetensors"
    train(module, optimizer, 0, 3)
    save_state(path, {"critic": module, "target": other}, {"optimizer": optimizer}, step=3)

    again, other_again = network(seed=2), network(seed=3)
    optimizer_again = adam(again)
    modules = {"critic": again, "target": other_again}
    assert load_state(path, modules, {"optimizer": optimizer_again}) == 3
    assert_same(again.state_dict(), module.state_dict())
    assert_same(other_again.state_dict(), other.state_dict())
    assert_same(optimizer_again.state_dict(), optimizer.state_dict())
    assert len(optimizer_again.state_dict()["state"]) == 4  # two layers' weights and biases have moments


def test_interrupted_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    straight = network()
    optimizer = adam(straight)
    train(straight, optimizer, 0, 6)

    first = network()
    first_optimizer = adam(first)
    train(first, first_optimizer, 0, 3)
    save_state(tmp_path / "state", {"m": first}, {"o": first_optimizer}, step=3)
    second = network(seed=5)
    second_optimizer = adam(second)
    train(second, second_optimizer, load_state(tmp_path / "state", {"m": second}, {"o": second_optimizer}), 6)
    assert_same(second.state_dict(), straight.state_dict())
    assert_same(second_optimizer.state_dict(), optimizer.state_dict())


def test_saving_replaces_the_old_state_and_leaves_nothing_else(tmp_path: Path) -> None:
    module = network()
    path = tmp_path / "state"
    save_state(path, {"m": module}, {}, step=1)
    with torch.no_grad():
        module[0].weight.fill_(7)
    save_state(path, {"m": module}, {}, step=2)
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    again = network(seed=1)
    assert load_state(path, {"m": again}, {}) == 2
    assert (again[0].weight == 7).all()


def test_state_before_the_first_step_has_no_moments(tmp_path: Path) -> None:
    module = network()
    save_state(tmp_path / "state", {"m": module}, {"o": adam(module)}, step=0)
    optimizer = adam(module)
    assert load_state(tmp_path / "state", {"m": module}, {"o": optimizer}) == 0
    assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_cut_file_is_called_damaged(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "state"
    save_state(path, {"m": network()}, {}, step=1)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="is damaged"):
        load_state(path, {"m": network()}, {})


def test_state_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "state", {"m": network(width=5)}, {}, step=1)
    with pytest.raises(ValueError, match="another shape"):
        load_state(tmp_path / "state", {"m": network(width=6)}, {})
    with pytest.raises(ValueError, match="another shape"):
        load_state(tmp_path / "state", {"other": network(width=5)}, {})


def test_missing_state_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / "state", {}, {})


def test_moments_of_a_model_of_another_shape_are_refused(tmp_path) -> None:
    small, large = nn.Linear(3, 4), nn.Linear(5, 4)
    optimizer = adam(small)
    small(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_state(tmp_path / "optimizer.safetensors", {}, {"optimizer": optimizer}, step=1)
    with pytest.raises(ValueError, match="optimizer of a model of another shape"):
        load_state(tmp_path / "optimizer.safetensors", {}, {"optimizer": adam(large)})
