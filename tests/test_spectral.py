"""Fourier transforms and complex numbers over named axes, against PyTorch's own, value and gradient."""

import pytest

from lossforge.frontends import spectral

torch = pytest.importorskip("torch")

from importing import compare  # noqa: E402

SHAPES = [[(2, 9, 8)], [(3, 11, 12)], [(1, 6, 7)]]  # even and odd sizes, and others again
NORMS = {"backward": 0.0, "ortho": 0.5, "forward": 1.0}


def power(imp, z):
    """What is compared: a real value that both parts have a share in."""
    real, imag = spectral.parts(imp, z)
    return imp.map(lambda r, i: r * r + 3.0 * i * r + i, real, imag)


def power_of(z):
    return z.real**2 + 3 * z.imag * z.real + z.imag


@pytest.mark.parametrize("dims", [(1,), (2,), (1, 2), (2, 1)], ids=str)
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_transforms(dims, half, norm):
    function = torch.fft.rfftn if half else torch.fft.fftn
    compare(
        lambda imp, x: power(imp, spectral.fourier(imp, x, dims, half=half, scale=NORMS[norm])),
        lambda x: power_of(function(x, dim=dims, norm=norm)),
        *SHAPES,
    )


@pytest.mark.parametrize("dims", [(2,), (1, 2)], ids=str)
def test_there_and_back(dims):
    def build(imp, x):
        z = spectral.fourier(imp, x, dims)
        w = spectral.fourier(imp, spectral.multiply(imp, z, z), dims, inverse=True, scale=1.0)
        assert w.real.dims == x.dims  # the axes of the argument, not new ones
        return power(imp, w)

    compare(build, lambda x: power_of(torch.fft.ifftn(torch.fft.fftn(x, dim=dims) ** 2, dim=dims)), *SHAPES)


@pytest.mark.parametrize("dims", [(2,), (1, 2)], ids=str)
def test_half_of_the_frequencies_and_back(dims):
    def build(imp, x):
        z = spectral.fourier(imp, x, dims, half=True)
        counts = imp.extents(x.dims[dims[-1]])
        return spectral.real_inverse(imp, spectral.multiply(imp, z, z), dims, counts, scale=1.0)

    def original(x):
        return torch.fft.irfftn(torch.fft.rfftn(x, dim=dims) ** 2, dim=dims, s=[x.shape[d] for d in dims])

    compare(build, original, *SHAPES)


OPERATIONS = {
    "add": (spectral.add, lambda a, b: a + b),
    "multiply": (spectral.multiply, lambda a, b: a * b),
    "divide": (spectral.divide, lambda a, b: a / b),
    "conjugate": (lambda imp, a, b: spectral.conjugate(imp, a), lambda a, b: a.conj()),
    "negative": (lambda imp, a, b: spectral.negative(imp, a), lambda a, b: -a),
    "exponential": (lambda imp, a, b: spectral.exponential(imp, a), lambda a, b: a.exp()),
    "magnitude": (
        lambda imp, a, b: spectral.complex_of(imp, spectral.magnitude(imp, a)),
        lambda a, b: torch.complex(a.abs(), torch.zeros_like(a.real)),
    ),
    "phase": (
        lambda imp, a, b: spectral.complex_of(imp, spectral.phase(imp, a)),
        lambda a, b: torch.complex(a.angle(), torch.zeros_like(a.real)),
    ),
    "parts": (
        lambda imp, a, b: spectral.as_complex(imp, spectral.as_real(imp, a)),
        lambda a, b: torch.view_as_complex(torch.view_as_real(a)),
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_arithmetic(name):
    mine, theirs = OPERATIONS[name]

    def build(imp, x, y):
        a, b = spectral.Complex(x, y), spectral.Complex(imp.elementwise("mul", x, y), imp.elementwise("add", x, 2.0))
        return power(imp, mine(imp, a, b))

    def original(x, y):
        return power_of(theirs(torch.complex(x, y), torch.complex(x * y, x + 2)))

    compare(build, original, *([*s, *s] for s in SHAPES))


def test_the_magnitude_has_no_gradient_at_the_origin():
    compare(
        lambda imp, x: spectral.magnitude(
            imp, spectral.Complex(imp.map(lambda a: a - a, x), imp.map(lambda a: 0.0 * a, x))
        ),
        lambda x: torch.complex(x - x, 0 * x).abs(),
        *SHAPES,
    )
