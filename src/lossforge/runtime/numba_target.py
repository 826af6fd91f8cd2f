"""What of Numba compiles a kernel: a target that knows numbers, loops and intrinsics, and the passes they need.

Numba's target for the CPU loads all that it can compile before its first function, SciPy's linear algebra included,
asks NumPy's array functions about each sum of two numbers, and takes every function through passes for closures, context
managers and array expressions. A kernel has none of these: its text is loops over intrinsics
(`codegen.instructions`, `codegen.vector_math`). Without them the first call of softmax Dice takes 1.1 s instead of 1.6 s.

Targets and pipelines of one's own are what Numba offers extensions (https://numba.readthedocs.io/en/stable/extending/).
Like `object_code`, this module is imported only when a kernel has to be compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NoReturn

from llvmlite import ir
from numba.core import cpu, fastmathpass, typed_passes, typing, untyped_passes
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager
from numba.core.dispatcher import Dispatcher
from numba.core.errors import TypingError
from numba.core.registry import CPUTarget
from numba.core.target_extension import CPU, dispatcher_registry, jit_registry, target_override, target_registry
from numba.core.typing.templates import builtin_registry

NAME = "lossforge"


class KernelCompiler(CompilerBase):
    """The passes from bytecode to LLVM that a function of loops and numbers needs."""

    def define_pipelines(self) -> list[PassManager]:
        """One pipeline, as Numba asks for."""
        passes = PassManager(NAME)
        for step in (
            untyped_passes.TranslateByteCode,
            untyped_passes.FixupArgs,
            untyped_passes.IRProcessing,
            untyped_passes.ReconstructSSA,
            typed_passes.NopythonTypeInference,
            typed_passes.PreLowerStripPhis,
            typed_passes.IRLegalization,
            typed_passes.AnnotateTypes,
            typed_passes.NativeLowering,
            typed_passes.NoPythonBackend,
        ):
            passes.add_pass(step, step.__name__)
        passes.finalize()
        return [passes]


class _Typing(typing.BaseContext):
    """Types of numbers, loops, arrays and intrinsics."""

    def _load_builtins(self) -> None:
        from numba.core.typing import arraydecl, builtins  # noqa: F401  (they register what they declare)

        self.install_registry(builtin_registry)


class _Lowering(cpu.CPUContext):
    """How these become instructions."""

    interleave = 0
    """How many vectors an innermost loop works on at a time; 0 as LLVM thinks best."""

    def load_additional_registries(self) -> None:
        from numba.cpython import builtins, numbers, rangeobj, tupleobj  # noqa: F401  (they register what they define)
        from numba.np import arrayobj  # noqa: F401

    def post_lowering(self, mod: Any, library: Any) -> None:
        """As the base class, without the library for memory that Numba manages: a kernel allocates nothing."""
        if self.fastmath:
            fastmathpass.rewrite_module(mod, self.fastmath)
        if self.interleave:
            _interleave(mod, self.interleave)


def _interleave(module: Any, count: int) -> None:
    """Say of each loop how many vectors it works on at a time: see https://llvm.org/docs/LangRef.html#llvm-loop."""
    wish = module.add_metadata(["llvm.loop.interleave.count", ir.Constant(ir.IntType(32), count)])
    for function in module.functions:
        place = {block: i for i, block in enumerate(function.blocks)}
        for block, i in place.items():
            targets = [o for o in block.terminator.operands if isinstance(o, ir.Block)] if block.terminator else []
            if any(place[t] <= i for t in targets):  # back to the head of a loop
                block.terminator.set_metadata("llvm.loop", _LoopIdentity(module, wish))


class _LoopIdentity(ir.MDValue):
    """A loop's metadata, which names itself first."""

    def __init__(self, module: Any, wish: Any) -> None:
        super().__init__(module, [wish], name=str(len(module.metadata)))
        self.operands = (self, wish)


class _Kernels(CPU):
    """The target, as Numba's registries know it."""


class _KernelTarget(CPUTarget):
    @cached_property
    def _toplevel_typing_context(self) -> _Typing:
        return _Typing()

    @cached_property
    def _toplevel_target_context(self) -> _Lowering:
        return _Lowering(self.typing_context, self._target_name)


kernel_target = _KernelTarget(NAME)


class _Dispatcher(Dispatcher):
    targetdescr = kernel_target


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise TypingError(
        "a kernel calls intrinsics alone: write this function as one (see lossforge.codegen.instructions)"
    )


target_registry[NAME] = _Kernels
dispatcher_registry[_Kernels] = _Dispatcher
jit_registry[_Kernels] = lambda *_, **__: _refuse


@contextmanager
def interleaving(count: int) -> Iterator[None]:
    """While this context lasts, innermost loops work on so many vectors at a time. Under Numba's lock."""
    context = kernel_target.target_context
    context.interleave = count
    try:
        yield
    finally:
        context.interleave = 0


def within_target() -> target_override:
    """While this context lasts, the calling thread compiles for kernels."""
    return target_override(NAME)
