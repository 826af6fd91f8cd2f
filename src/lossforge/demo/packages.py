"""Packages that only the demo needs, and what is said where they are missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from lossforge.errors import MissingPackageError


def require(packages: Mapping[str, str], *, extra: str) -> None:
    """Refuse to start without some packages.

    Args:
        packages: what they are called in an `import`, and what `pip` calls them.
        extra: the extra of lossforge that installs them.

    Raises:
        MissingPackageError: with the command that installs what is missing.
    """
    missing = [name for module, name in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingPackageError(
            f"the demo needs {' and '.join(missing)}, not found here; this installs what is missing: "
            f'pip install "lossforge[{extra}]"'
        )
