"""Readable names for the axes of a function that was read."""

from __future__ import annotations

from lossforge import ir
from lossforge.adoption.reading import Read, Reader
from lossforge.errors import AdoptionError


def name_axes(reader: Reader, read: Read, layout: str | None) -> None:
    """Readable names: from the layout, else batch, class, and the argument's own.

    Raises:
        AdoptionError: the layout is not one of the prediction.
    """
    original, names, origin = reader.original, reader.table.names, read.importer.origin
    roots = reader.roots()
    main = roots[original.names.index(original.predictions[0])]
    given = _laid_out(layout, len(main), original.predictions[0]) if layout else None
    nodes = ir.topological([read.result.node])
    classes = {n.attrs[0] for n in nodes if n.op == "take" and n.args[1].op != "constant"}
    classes |= {i.attrs[0] for n in nodes if n.op == "eq" for i in n.args if i.op == "iota"}
    classes = {origin[a] for a in classes if a in origin}
    taken = {*original.names, *original.numbers, "weight", "mask"}
    for d, root in enumerate(main):
        wish = given[d] if given else "class" if root in classes and d else "batch" if d == 0 else f"axis{d}"
        if root in names:
            continue
        while wish in taken:
            wish += "_"
        taken.add(wish)
        names[root] = wish
    for of in roots:
        for root in of:
            names.setdefault(root, root)


def _laid_out(text: str, rank: int, name: str) -> list[str]:
    """The names in a layout, that of several dimensions written out."""
    words = text.split()
    starred = [i for i, w in enumerate(words) if w.startswith("*")]
    if len(starred) > 1 or (not starred and len(words) != rank) or (starred and len(words) - 1 > rank):
        raise AdoptionError(f"layout={text!r} does not fit {name!r}, which has {rank} dimensions")
    if starred:
        (i,) = starred
        stem = words[i][1:]
        count = rank - len(words) + 1
        words[i : i + 1] = [stem] if count == 1 else [f"{stem}_{k}" for k in range(count)]
    if bad := [w for w in words if not w.isidentifier()]:
        raise AdoptionError(f"layout={text!r}: {bad[0]!r} is not an axis name")
    return words
