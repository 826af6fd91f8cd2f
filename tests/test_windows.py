"""Convolution, pooling, padding and resampling over named axes, against PyTorch's own, value and gradient."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossforge import ir
from lossforge.errors import AdoptionError
from lossforge.frontends import windows
from lossforge.frontends.positional import Refused
from lossforge.frontends.recording import Varying

torch = pytest.importorskip("torch")

from importing import compare, imported  # noqa: E402

F = torch.nn.functional

FEW = settings(max_examples=40, deadline=None, derandomize=True)

SPACES = ((9,), (9, 8), (6, 7, 5))
SECOND = ((13,), (11, 12), (9, 8, 7))
THIRD = ((10,), (7, 10), (7, 5, 6))


@FEW
@given(st.data())
def test_convolution(data):
    rank = data.draw(st.integers(1, 3))
    groups, each, inner = (data.draw(st.integers(1, 2)) for _ in range(3))
    options = [
        (
            data.draw(st.integers(1, 3)),
            data.draw(st.integers(1, 3)),
            data.draw(st.integers(1, 2)),
            data.draw(st.integers(0, 2)),
        )
        for _ in range(rank)
    ]
    taps, stride, dilation, padding = (list(o) for o in zip(*options, strict=True))
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    kind = data.draw(st.sampled_from(["any", "separable", "box", "argument"]))
    weight = rng.standard_normal((groups * each, inner, *taps))
    if kind == "separable":
        factors = [rng.standard_normal((*weight.shape[:2], k)) for k in taps]
        letters = "xyz"[:rank]
        weight = np.einsum(",".join("oi" + c for c in letters) + "->oi" + letters, *factors)
    if kind == "box":
        weight = np.broadcast_to(weight[:, :1].mean(axis=tuple(range(1, 2 + rank)), keepdims=True), weight.shape).copy()
    torch_options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]

    def build(imp, x, w=None):
        pads = [(p, p) for p in padding]
        return windows.convolve(
            imp, x, weight if w is None else w, stride=stride, padding=pads, dilation=dilation, groups=groups
        )

    shapes = [[(n, groups * inner, *s[rank - 1])] for n, s in ((2, SPACES), (3, SECOND), (1, THIRD))]
    if kind == "argument":
        shapes = [[*s, weight.shape] for s in shapes]
        compare(build, lambda x, w: function(x, w, **torch_options), *shapes)
    else:
        compare(build, lambda x: function(x, torch.tensor(weight), **torch_options), *shapes)


def test_depthwise_convolution_of_any_number_of_channels():
    weight = np.random.default_rng(0).standard_normal((1, 1, 3, 3))

    def build(imp, x):
        kernel = imp.expand(weight, [(5, 1, 3, 3), (3, 1, 3, 3)])
        return windows.convolve(
            imp, x, kernel, stride=[1, 1], padding=[(0, 0)] * 2, dilation=[1, 1], groups=Varying((5, 3))
        )

    def original(x):
        return F.conv2d(x, torch.tensor(weight).expand(x.shape[1], 1, 3, 3), groups=x.shape[1])

    compare(build, original, [(2, 5, 9, 8)], [(7, 3, 11, 6)], [(1, 4, 6, 7)])


@FEW
@given(st.data())
def test_pooling(data):
    rank = data.draw(st.integers(1, 3))
    op = data.draw(st.sampled_from(["avg", "max"]))
    size = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    stride = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    padding = [data.draw(st.integers(0, k // 2)) for k in size]
    ceil = data.draw(st.booleans())
    if op == "avg":
        counted = data.draw(st.booleans())
        function = getattr(F, f"avg_pool{rank}d")
        options = {"count_include_pad": counted}
    else:
        dilation = [data.draw(st.integers(1, 2)) for _ in range(rank)]
        function = getattr(F, f"max_pool{rank}d")
        options = {"dilation": dilation}

    def build(imp, x):
        pads = [(p, p) for p in padding]
        if op == "avg":
            return windows.average_pool(imp, x, size, stride, pads, ceil=ceil, count_padding=counted)
        return windows.maximum_pool(imp, x, size, stride, pads, ceil=ceil, dilation=dilation)

    shapes = [[(n, 2, *s[rank - 1])] for n, s in ((2, SPACES), (3, SECOND), (1, THIRD))]
    compare(build, lambda x: function(x, size, stride, padding, ceil_mode=ceil, **options), *shapes)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("widths", [((1, 2), (0, 0)), ((2, 0), (3, 1)), ((0, 1), (2, 2))], ids=str)
def test_padding(mode, widths):
    flat = [n for pair in reversed(widths) for n in pair]
    value = 1.5 if mode == "constant" else None
    compare(
        lambda imp, x: windows.pad(imp, x, [(0, 0), (0, 0), *widths], mode, value or 0.0),
        lambda x: F.pad(x, flat, mode, value),
        *([(2, 3, *s[1])] for s in (SPACES, SECOND, THIRD)),
    )


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("factor", [2, 3, 0.5, 1 / 3])
def test_resampling(factor, linear):
    def build(imp, x):
        for dim in (2, 3):
            if factor > 1:
                x = windows.enlarge(imp, x, dim, int(factor), linear=linear)
            else:
                x = windows.thin(imp, x, dim, round(1 / factor), linear=linear)
        return x

    def original(x):
        mode = "bilinear" if linear else "nearest"
        return F.interpolate(x, scale_factor=factor, mode=mode, recompute_scale_factor=False).sum()

    def summed(imp, x):
        return imp.reduce("sum", build(imp, x))

    compare(summed, original, *([(2, 3, *s[1])] for s in (SPACES, SECOND, THIRD)))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("size", [(7, 3), (9, 12)])
def test_interpolation_to_any_size(size, aligned):
    def build(imp, x):
        for dim, n in zip((2, 3), size, strict=True):
            x = windows.interpolate(imp, x, dim, (n,) * imp.count, linear=True, aligned=aligned)
        return x

    shapes = [[(2, 3, *s[1])] for s in (SPACES, SECOND, THIRD)]
    compare(build, lambda x: F.interpolate(x, size, mode="bilinear", align_corners=aligned), *shapes)


@pytest.mark.parametrize("size", [(3, 2), (7, 12)])
@pytest.mark.parametrize(
    ("adaptive", "original"),
    [(windows.adaptive_average, F.adaptive_avg_pool2d), (windows.adaptive_maximum, F.adaptive_max_pool2d)],
)
def test_adaptive_pooling(size, adaptive, original):
    def build(imp, x):
        for dim, n in zip((3, 2), size[::-1], strict=True):
            x = adaptive(imp, x, dim, (n,) * imp.count)
        return x

    compare(build, lambda x: original(x, size), *([(2, 3, *s[1])] for s in (SPACES, SECOND, THIRD)))


def test_patches():
    stencils = [windows.stencil_of(3, 2, 1, (1, 1)), windows.stencil_of(2, 1, 2)]

    def build(imp, x):
        return imp.reduce("sum", windows.patches(imp, x, [2, 3], stencils), [2, 3])

    def original(x):
        columns = F.unfold(x, (3, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1))
        return columns.reshape(*x.shape[:2], 3, 2, -1).sum(-1)

    compare(build, original, *([(2, 3, *s[1])] for s in (SPACES, SECOND, THIRD)))


def test_a_separable_kernel_is_applied_one_dimension_after_the_other():
    gaussian = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    kernel = np.outer(gaussian, gaussian)[None, None]

    def build(imp, x):
        return windows.convolve(imp, x, kernel, stride=[1, 1], padding=[(0, 0)] * 2, dilation=[1, 1])

    importer, made = imported(build, [(2, 1, 20, 21)], [(3, 1, 23, 24)])
    slides = [n for n in ir.topological([made.node]) if n.op == "slide"]
    assert [n.attrs[3].taps for n in slides] == [11, 11]
    assert all(len(n.axes) <= 5 for n in ir.topological([made.node]))  # never both taps at once


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda imp, x: windows.pad(imp, x, [(0, 0), (1, 1)], "wrong"), "padding with mode 'wrong'"),
        (lambda imp, x: imp.slide(x, 1, windows.stencil_of(9)), "no window fits into a dimension of size 5"),
    ],
)
def test_refusals(build, words):
    with pytest.raises((Refused, AdoptionError), match=words):
        imported(build, [(4, 5)], [(6, 7)])
