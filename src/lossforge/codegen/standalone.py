"""Files that stand alone: a loss and its gradient as readable source text that needs one framework, and not lossforge.

`File` has what all of them share. A framework adds its spelling, and its own way to plug a derivative into its
backward pass: PyTorch's `autograd.Function` and a module, TensorFlow's `custom_gradient`, JAX's `custom_jvp`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lossforge.codegen.emitter import Backend
from lossforge.codegen.file import Exportable, File
from lossforge.codegen.jax import jax_backend
from lossforge.codegen.tensorflow import tensorflow_backend
from lossforge.codegen.torch import torch_backend
from lossforge.errors import FrameworkError
from lossforge.frontends.signature import python_name
from lossforge.ir import Port, Program
from lossforge.transposition import transposable


def standalone(loss: Exportable, framework: str = "numpy", **parameters: Any) -> str:
    """The text of a file with value and gradient that needs only `framework`.

    Args:
        loss: the loss.
        framework: "numpy", "torch", "tensorflow" or "jax".
        parameters: values of parameters, which become the defaults in the file.

    Raises:
        FrameworkError: there is no such framework.
        ParameterError: a parameter that the loss does not have.
    """
    if framework not in _FILES:
        raise FrameworkError(f"no framework {framework!r}; files can be written for {', '.join(_FILES)}")
    return _FILES[framework](loss, parameters).text()


class _Torch(File):
    title = "PyTorch"
    array = "torch.as_tensor({0})"
    is_float = "{0}.is_floating_point()"
    is_no_float = "not {0}.is_floating_point()"
    double = "torch.float64 in ({0})"
    dtypes = ("torch.float64", "torch.float32")
    index = "{0}.to(torch.int64)"
    truth = "{0}.to(torch.bool)"
    cast = "{0}.to({1})"
    ones = "torch.ones_like(loss)"
    count = "loss.numel()"
    decorator = "@torch.no_grad()\n"

    def make_backend(self) -> Backend:
        return torch_backend()

    def entries_call(self) -> str:
        return f"{self.class_name}Function.apply({self.all_inputs})"

    def extras(self) -> list[str]:
        parameters = [python_name(p.name) for p in self.scalars]
        context = "".join(f"\n        ctx.{n} = {n}" for n in parameters)
        names = self.inputs
        comma = "," if len(names) == 1 else ""
        inputs = ", ".join([*names, *(f"ctx.{n}" for n in parameters)])
        others = [i for i, n in enumerate(names) if n not in map(python_name, self.predictions)]
        refuse = ""
        if others:
            refuse = (
                f"        if any(ctx.needs_input_grad[i] for i in {tuple(others)}):\n"
                f'            raise NotImplementedError("only the gradient with respect to {self._wrt()} is known here")\n'
            )
        gradients = [f"{n}_gradient" for n in names if n in map(python_name, self.predictions)]
        results = [f"{n}_gradient" if f"{n}_gradient" in gradients else "None" for n in names] + ["None"] * len(
            parameters
        )
        module_options = self.options()
        stored = "".join(f"\n        self.{n} = {n}" for n in (*parameters, self.reduction))
        call = ", ".join(f"{n}=self.{n}" for n in (*parameters, self.reduction))
        shown = ", ".join(f"{n}={{self.{n}!r}}" for n in (*parameters, self.reduction))
        return [
            f'''
class {self.class_name}Function(torch.autograd.Function):
    """The loss of each entry, with its own backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward({self.all_inputs}):
        return {self.name}_entries({self.all_inputs})

    @staticmethod
    def setup_context(ctx, inputs, output):
        {self.all_inputs}{"," if "," not in self.all_inputs else ""} = inputs
        ctx.save_for_backward({", ".join(names)}){context}

    @staticmethod
    def backward(ctx, cotangent):
{refuse}        {", ".join(names)}{comma} = ctx.saved_tensors
        {", ".join(gradients)} = {self.name}_vjp({inputs}, cotangent)
        return {", ".join(results)}
''',
            f'''
class {self.class_name}(torch.nn.Module):
    """The loss as a module."""

    def __init__(self, *, {module_options}):
        super().__init__(){stored}

    def forward(self, {", ".join(names)}):
        return {self.name}({", ".join(names)}, {call})

    def extra_repr(self):
        return f"{shown}"
''',
        ]


class _TensorFlow(File):
    title = "TensorFlow"
    array = "tf.convert_to_tensor({0})"
    is_float = "{0}.dtype.is_floating"
    is_no_float = "not {0}.dtype.is_floating"
    double = "tf.float64 in ({0})"
    dtypes = ("tf.float64", "tf.float32")
    index = "tf.cast({0}, tf.int64)"
    truth = "tf.cast({0}, tf.bool)"
    cast = "tf.cast({0}, {1})"
    ones = "tf.ones_like(loss)"
    count = "tf.cast(tf.size(loss), loss.dtype)"
    mean, sum = "tf.reduce_mean(loss)", "tf.reduce_sum(loss)"

    def make_backend(self) -> Backend:
        return tensorflow_backend()

    def rank(self, name: str) -> str:
        return f"{name}.shape.rank"

    def differs(self, name: str, expected: str) -> str:
        return f"not {name}.shape.is_compatible_with({expected})"

    def is_other_size(self, size: str, expected: str) -> str:
        return f"None not in ({size}, {expected}) and {size} != {expected}"  # None: not known yet

    def value(self) -> str:
        predictions = [python_name(p) for p in self.predictions]
        return f'''
def {self.name}({", ".join(self.inputs)}, *, {self.options()}):
    """The loss as one number; that of each entry for {self.reduction}="none"."""
    {self._prepare()}

    @tf.custom_gradient
    def entries({", ".join(predictions)}):
        def backward(cotangent):
            return {self.name}_vjp({self.all_inputs}, cotangent)

        return {self.name}_entries({self.all_inputs}), backward

    return reduced(entries({", ".join(predictions)}), {self.reduction})
'''


class _JAX(File):
    title = "JAX"
    array = "jnp.asarray({0})"
    is_float = "jnp.issubdtype({0}.dtype, jnp.floating)"
    is_no_float = "not jnp.issubdtype({0}.dtype, jnp.floating)"
    double = "jnp.float64 in ({0})"
    dtypes = ("jnp.float64", "jnp.float32")
    index = "{0}.astype(int)"
    cast = "{0}.astype({1})"
    ones = "jnp.ones_like(loss)"

    def make_backend(self) -> Backend:
        return jax_backend()

    def imports(self) -> Sequence[str]:
        return ("import math", "from functools import partial", *self.backend.imports[1:])

    def entries(self) -> str:
        places = tuple(range(len(self.inputs), len(self.inputs) + len(self.scalars)))
        decorator = f"@partial(jax.custom_jvp, nondiff_argnums={places})" if places else "@jax.custom_jvp"
        return f"{decorator}\n{super().entries()}\n\n{self.rule()}"

    def rule(self) -> str:
        """The derivative, for forward and reverse mode."""
        parameters = [python_name(p.name) for p in self.scalars]
        dots = {n: f"{n}_dot" for n in self.inputs}
        moving = [dots[python_name(p)] for p in self.predictions]
        still = [dots[n] for n in self.inputs if dots[n] not in moving]
        zero = "jax.custom_derivatives.SymbolicZero"
        refuse = ""
        if still:
            refuse = (
                f"    if not all(isinstance(dot, {zero}) for dot in ({', '.join(still)},)):\n"
                f'        raise NotImplementedError("only the gradient with respect to {self._wrt()} is known here")\n'
            )
        filled = "".join(
            f"    {dot} = jnp.zeros_like({n}) if isinstance({dot}, {zero}) else {dot}\n"
            for n, dot in dots.items()
            if dot in moving
        )
        comma = "," if len(self.inputs) == 1 else ""
        jvp = self._emitted(
            self._transposable(self.plan.jvp(self.predictions)),
            f"{self.name}_jvp",
            f"The change of the loss of each entry with a change of {self._wrt()}.",
        )
        return f"""
@partial({self.name}_entries.defjvp, symbolic_zeros=True)
def _({", ".join([*parameters, "primals", "tangents"])}):
    {", ".join(self.inputs)}{comma} = primals
    {", ".join(dots.values())}{comma} = tangents
{refuse}{filled}    tangent = {self.name}_jvp({self.all_inputs}, {", ".join(moving)})
    return {self.name}_entries({self.all_inputs}), tangent


{jvp}"""

    def _transposable(self, tangent: Program) -> Program:
        """JAX gets reverse mode by transposing this program."""
        moving = tangent.inputs[len(tangent.inputs) - len(self.predictions) :]
        nodes = transposable([o.node for o in tangent.outputs], [p.node for p in moving])
        outputs = tuple(Port(n, o.order) for n, o in zip(nodes, tangent.outputs, strict=True))
        return replace(tangent, outputs=outputs)


_FILES: Mapping[str, type[File]] = {"numpy": File, "torch": _Torch, "tensorflow": _TensorFlow, "jax": _JAX}
