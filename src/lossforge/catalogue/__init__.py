"""Well-known losses, written in the public language: each definition is an example of it.

``from lossforge.catalogue import huber`` gives one, `LOSSES` has all of them by name. The docstring of each
states its formula, shapes, domain and source.
"""

from collections.abc import Mapping
from types import MappingProxyType

from lossforge.catalogue import classification, likelihood, metric, regression, segmentation
from lossforge.catalogue.classification import *  # noqa: F403
from lossforge.catalogue.likelihood import *  # noqa: F403
from lossforge.catalogue.metric import *  # noqa: F403
from lossforge.catalogue.regression import *  # noqa: F403
from lossforge.catalogue.segmentation import *  # noqa: F403
from lossforge.loss import Loss

_FAMILIES = (regression, likelihood, classification, segmentation, metric)

LOSSES: Mapping[str, Loss] = MappingProxyType({name: vars(m)[name] for m in _FAMILIES for name in m.__all__})
"""All losses, by name, in families."""

__all__ = ["LOSSES", *LOSSES]
