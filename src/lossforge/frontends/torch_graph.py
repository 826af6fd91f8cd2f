"""A graph of ATen operations as a recording."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch

from lossforge.frontends.recording import Recording, Ref, Step, as_written


@cache
def decompositions() -> dict[Any, Any]:
    """How operations are taken apart: into the core ones, but for those that rules read as they are."""
    from torch._decomp import core_aten_decompositions, get_decompositions

    aten = torch.ops.aten
    wanted = [
        aten.nll_loss_forward, aten.nll_loss2d_forward, aten.huber_loss, aten.smooth_l1_loss,
        aten.binary_cross_entropy, aten.binary_cross_entropy_with_logits, aten.soft_margin_loss, aten.mse_loss,
        aten.norm, aten.logaddexp, aten.xlogy, aten.stack, aten.celu, aten.elu,
        aten.softplus, aten.log_sigmoid_forward, aten.hardtanh, aten.leaky_relu, aten.logit, aten.nan_to_num,
        aten.addmm, aten.baddbmm, aten.rsub, aten.frac, aten.trace, aten.diag_embed, aten.std, aten.std_mean,
        aten.var_mean, aten.dist, aten.renorm, aten.index_add, aten.margin_ranking_loss, aten.multi_margin_loss,
        aten.multilabel_margin_loss_forward, aten.rot90, aten.tril, aten.triu, aten.lerp, aten.sinc,
        aten.heaviside, aten.native_batch_norm, aten._euclidean_dist, aten.cdist, aten._cdist_forward, aten.special_entr,
        aten.grid_sampler_2d,
    ]  # fmt: skip
    kept = [op for op in wanted if op is not aten.softplus and op is not aten.log_sigmoid_forward]
    core: dict[Any, Any] = dict(core_aten_decompositions())
    core = {k: v for k, v in core.items() if not any(word in str(k) for word in _WHOLE)}
    return {**core, **get_decompositions(kept)}  # PyTorch's own `stack` is as many steps for any number of pieces


_WHOLE = ("pad", "unfold", "im2col", "pool", "upsample", "convolution", "aten.roll", "linalg_cross")
"""Parts of names of operations that keep their meaning: decomposed, they are index arithmetic."""


@contextmanager
def stack_traces() -> Any:
    """Recorded operations know the lines of the source that `Watch` notes; sizes that a function does not allow are not logged."""
    from torch.fx import traceback

    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    log.disabled = True  # sizes that a function does not allow are tried on purpose
    try:
        with traceback.preserve_node_meta():
            yield
    finally:
        log.disabled = before


def read(traced: torch.fx.GraphModule, arrays: Sequence[np.ndarray]) -> Recording:
    """A traced graph as a recording."""
    numbers: dict[torch.fx.Node, int] = {}
    count = itertools.count()
    steps: list[Step] = []
    result: Any = None
    constants: dict[torch.fx.Node, Any] = {}

    def convert(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return constants[value] if value in constants else Ref(numbers[value])
        if isinstance(value, list | tuple):
            return tuple(convert(v) for v in value)
        if isinstance(value, torch.dtype | torch.device | torch.layout | torch.memory_format):
            return str(value)
        return value

    used = _used(traced.graph)
    for node in traced.graph.nodes:
        if node.op == "call_function" and node not in used:
            continue
        if node.op == "placeholder":
            numbers[node] = next(count)
        elif node.op == "get_attr":
            found: Any = traced
            for part in str(node.target).split("."):
                found = getattr(found, part)
            plain = as_written(found.detach().cpu().numpy())
            constants[node] = plain if plain.ndim else plain.item()
        elif node.op == "output":
            result = convert(node.args[0])
        elif node.op == "call_function":
            made = node.meta.get("val")
            several = made if isinstance(made, list | tuple) else (made,)
            where = node.meta.get("stack_trace") or ""
            if getattr(node.target, "__name__", "") == "getitem":
                numbers[node] = numbers[node.args[0]] + 1 + node.args[1]
                continue
            args = tuple(convert(a) for a in node.args)
            first = next(count)
            numbers[node] = first
            outputs = (first,) if not isinstance(made, list | tuple) else tuple(next(count) for _ in several)
            shapes = tuple((tuple(v.shape),) for v in several if isinstance(v, torch.Tensor))
            dtypes = tuple(str(v.dtype) for v in several if isinstance(v, torch.Tensor))
            attrs = {k: convert(v) for k, v in node.kwargs.items()}
            name = str(node.target).removeprefix("aten.").removeprefix("lossforge.")
            base, _, form = name.partition(".")
            if base.endswith("_"):  # in place, within a decomposition: later uses mean the new value
                if node.args[0].op == "placeholder":  # at the end, for the caller: the value is the same without it
                    continue
                numbers[node.args[0]] = first
                name = f"{base[:-1]}.{form}"
            steps.append(Step(name, args, attrs, outputs, shapes, where, dtypes))
    inputs = tuple((tuple(a.shape),) for a in arrays)
    return Recording(inputs, tuple(steps), result)


def _used(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """The steps that the result depends on, those that write into arrays, and selections, whose number it may depend on."""
    pending = [
        n
        for n in graph.nodes
        if n.op == "output"
        or str(n.target) == "lossforge.position.default"
        or str(n.target).removeprefix("aten.").partition(".")[0].endswith("_")
    ]
    found: set[torch.fx.Node] = set()
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += node.all_input_nodes
    return found
