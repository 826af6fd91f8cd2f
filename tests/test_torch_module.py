"""`loss.torch()`: a loss as a module."""

import copy
import io
import pickle

import pytest

import lossforge as lf
from lossforge.errors import ParameterError

torch = pytest.importorskip("torch")

from lossforge.adapters.torch import LossModule  # noqa: E402
from torch_cases import assert_close, huber, normal, quantile  # noqa: E402

KERNELS = False  # PyTorch's own operations; the kernels have tests of their own


def test_the_repr_shows_the_loss_and_its_parameters():
    assert repr(huber.torch(delta=0.5)) == "LossModule(huber, delta=0.5, reduction='mean')"
    learned = huber.torch(learn=("delta",), reduction="sum")
    assert repr(learned) == "LossModule(huber, delta=1 (learned), reduction='sum')"
    assert "LossModule(quantile, level=0.3" in repr(torch.nn.ModuleList([quantile.torch()]))


def pickled(module):
    return pickle.loads(pickle.dumps(module))


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "module",
    [
        lambda: huber.torch(delta=0.5, reduction="sum"),
        lambda: huber.torch(delta=torch.nn.Parameter(torch.tensor(0.5)), reduction="sum"),
        lambda: huber.torch(delta=torch.tensor(0.5), reduction="sum"),
    ],
    ids=["number", "learned", "buffer"],
)
@pytest.mark.parametrize("way", ["pickle", "deepcopy", "save"])
def test_modules_survive_copies(module, way, rng):
    original = module()
    copied = {"pickle": pickled, "deepcopy": copy.deepcopy, "save": saved}[way](original)
    x, y = (normal(4)(rng, torch.float32) for _ in range(2))
    assert_close(copied(x, y), original(x, y), "float32")
    assert repr(copied) == repr(original) and copied.loss is huber
    assert list(copied.state_dict()) == list(original.state_dict())


def test_learned_parameters_are_in_the_state_and_move():
    module = huber.torch(delta=torch.nn.Parameter(torch.tensor(0.5)))
    assert list(module.state_dict()) == ["delta"]
    assert [n for n, _ in module.named_parameters()] == ["delta"]
    other = huber.torch(learn="delta")
    other.load_state_dict(module.state_dict())
    assert other.delta.item() == 0.5
    assert other.to(torch.float64).delta.dtype is torch.float64
    buffer = huber.torch(delta=torch.tensor(0.5))
    assert list(buffer.parameters()) == [] and list(buffer.state_dict()) == ["delta"]


def test_a_module_called_like_its_loss(rng):
    x, y = (normal(4, 2)(rng) for _ in range(2))
    module = huber.torch(delta=0.3, reduction="sum")
    weight, mask = torch.tensor([1.0, 2.0, 0.0, 0.5], dtype=torch.float64), x > 0
    expected = huber(x, y, delta=0.3, reduction="sum", weight=weight, mask=mask)
    assert_close(module(x, y, weight=weight, mask=mask), expected)
    assert_close(module(true=y, pred=x, weight=weight, mask=mask), expected)


def test_learning_a_parameter_reduces_the_loss(rng):
    """Uncertainty weighting (Kendall, Gal & Cipolla, 2018): the best scale is that of the residuals."""

    @lf.loss
    def weighted(pred, true, *, log_scale=0.0):
        return 0.5 * (pred - true) ** 2 * lf.exp(-2 * log_scale) + log_scale

    x, y = normal(200)(rng), torch.zeros(200, dtype=torch.float64)
    module = LossModule(weighted, learn=("log_scale",), log_scale=1.5)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(module(x, y))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert module.log_scale.item() == pytest.approx(x.square().mean().sqrt().log().item(), abs=1e-3)


def test_a_parameter_named_like_an_attribute_of_modules_is_refused():
    odd = lf.loss(lambda pred, *, training=1.0: training * pred)
    assert odd.torch()(torch.ones(2)).item() == 1.0
    with pytest.raises(ParameterError, match="'training' already"):
        odd.torch(learn=("training",))
