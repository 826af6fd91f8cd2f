"""At which sizes a function is read: the axes that may have any, those that go together, those that have one only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

from lossforge.adoption.original import Original
from lossforge.adoption.reading import Read, Reader
from lossforge.adoption.sampling import entries
from lossforge.errors import AdoptionError
from lossforge.frontends.positional import AxisTable
from lossforge.frontends.recording import Different
from lossforge.ir import Axis

DRAWS = ((7, 11, 5, 13, 17, 19, 23, 29), (11, 5, 13, 17, 19, 23, 29, 31))
"""Sizes of axes in the two recordings: primes, so that products and sums tell where they come from. No product of some
axes is the same in both, or it would pass for a constant."""
LARGER = ((3, 5, 23, 29, 19, 31, 37, 41), (5, 7, 29, 37, 23, 41, 43, 47))
"""For losses that cut windows out of images."""
_CHANNELS_LAST = ((3, 23, 29, 5, 19, 31, 37, 41), (5, 29, 37, 7, 23, 41, 43, 47))
"""For such as have the channels behind space."""
_LARGEST = ((23, 29, 19, 31, 37, 41, 43, 47), (29, 31, 23, 37, 41, 43, 47, 53))
"""For losses that cut windows out of their inputs."""
LENGTHS = (97, 101)
"""Of an axis of whose entries a share is taken: enough to tell by how many there are which share it is, to a hundredth."""
_MOST_POWERS = 5
"""Axes that may grow by different powers."""
_LARGEST_RECORDED = 2**20
"""Entries of an array of drawn sizes; a loss that needs more is tried at sizes near those of its examples."""

_LARGE = 2**14
"""Entries of an array of the examples beside which batches and channels are better few ..."""
_FEW = 64
"""... where the examples have fewer than this."""

_ADVICE = "use array operations in place of a loop whose turns follow from each other"

Fits: TypeAlias = Callable[[Mapping[Axis, int], Mapping[Axis, int]], bool]
"""Whether a function can be had at two sets of sizes."""


class Sizes(Reader):
    """Finds two sets of sizes that tell all axes apart which need not be one."""

    def __init__(self, original: Original) -> None:
        super().__init__(original)
        self.kept: dict[Axis, int] = {}
        """Axes that keep the size of the examples, since the function takes other steps at other sizes."""
        self.lengths: dict[Axis, tuple[int, int]] = {}
        """Axes that must be long."""
        self.stuck: dict[Axis, int] = {}
        """Axes that have one size only."""

    def generalise(self, fixed: Collection[Axis]) -> Read:
        """Record at two sets of sizes that are distinct, or as distinct as the function allows.

        `fixed` are axes that constant arrays seem to give their size.
        """
        problem: Exception | None = None
        poor: tuple[Read, AxisTable, dict[str, float]] | None = None  # for want of a better one
        kept = self.table.unnamed()
        tied, level = self._tied(), self._level()
        beside = self._tied(beside=True)
        close = [kept, *([tied] if tied.parents != kept.parents else [])]
        close += [beside] if beside.parents != tied.parents else []
        far = [level] if all(level.parents != t.parents for t in close) else []
        draws = (DRAWS, LARGER, _CHANNELS_LAST, _LARGEST)
        # Axes that are one for their size alone come last: in a square image they are so by chance.
        for sizes, table in [*itertools.product(draws, close), *itertools.product(draws, far)]:
            self.table = table.unnamed()
            example = self.example()
            free = [r for r in example if r not in self.table.units]
            kept_sizes = {self.table.root(r): n for r, n in self.kept.items()}
            pinned = {**kept_sizes, **{r: example[r] for r in free if r in {self.table.root(f) for f in fixed}}}
            for stay in (kept_sizes, pinned) if pinned != kept_sizes else (kept_sizes,):
                if problem is not None and self.original.tired:
                    break
                chosen = [drawn(free, example, d, stay | self._long(k)) for k, d in enumerate(sizes)]
                if sizes is _LARGEST and entries(self.shapes(chosen[0])) > _LARGEST_RECORDED:
                    continue
                try:
                    read = self._holding(self.at(chosen), kept_sizes)
                    if not read.hollow and all(self.original.takes_shapes(s) for s in read.shapes):
                        return read
                    poor = poor or (read, self.table, self.numbers)
                except (AdoptionError, Different) as error:
                    problem = error if problem is None or (sizes is DRAWS and stay is kept_sizes) else problem
                    if self.original.exhausted and any(self.original.refuses(self.shapes(c)) for c in chosen):
                        raise self._refusal(problem) from None
                self.table = table.unnamed()
        if poor is not None:
            read, self.table, self.numbers = poor
            return read
        for table in close:  # calls alone, which are far quicker than recordings, tell the sizes of most functions
            try:
                return self._restricted(table, problem, self.runs)
            except (AdoptionError, Different) as error:
                problem = error
            if self.original.exhausted:
                break
        if self.original.tired:
            raise self._refusal(problem)
        return self._restricted(kept, problem, self.reads)

    def _refusal(self, problem: Exception | None) -> AdoptionError:
        """The reason why it cannot be read, with the name of the function."""
        return problem if isinstance(problem, AdoptionError) else AdoptionError(f"{self.original.name}: {problem}")

    def _long(self, which: int) -> dict[Axis, int]:
        """The sizes of axes that must be long."""
        return {self.table.root(r): n[which] for r, n in self.lengths.items()}

    def _restricted(
        self,
        kept: AxisTable,
        problem: Exception | None,
        fits: Fits,
    ) -> Read:
        """Record at two sets of sizes, where some axes have one size only, or some sizes; `fits` tells which.

        Raises:
            AdoptionError: there are none at which the function can be read; for the reason of `problem`.
        """
        self.table = kept.unnamed()
        example = self.example()
        free = [r for r in example if r not in self.table.units]
        # Some axes have one size only: find out which, and which of them only go together.
        singles = [r for r in free if example[r] == 1]
        options = {r: [] if r in self.kept else self._sizes_for(r, free, example, kept, fits) for r in free}
        if self._tie([r for r in free if not options[r] and r not in singles], example):
            together = self.table.unnamed()
            free = [r for r in free if self.table.root(r) == r]
            again = {r: self._sizes_for(r, free, example, together, fits) for r in free if not options[r]}
            if any(again.values()):
                options, kept = {**options, **again}, together
            else:
                free = list(options)
        self.table = kept.unnamed()
        for r in singles:
            if not options[r]:
                self.table.units.add(r)
        kept = self.table.unnamed()
        chosen: list[dict[Axis, int]] = [{}, {}]
        stuck = {r: example[r] for r in free if not options[r] and r not in self.table.units}
        if len(stuck) > 1:
            chosen = self._together(stuck, {r: example[r] for r in free}, kept, fits)
            stuck = {r: n for r, n in stuck.items() if r not in chosen[0]}
        roots = self.roots()
        main = roots[self.original.names.index(self.original.predictions[0])]
        batches = {of[0] for of in roots if of} - {*main[1:]}
        base = {r: example[r] for r in free}
        alike = {r: [q for q in stuck if example[q] == example[r]] for r in stuck if r in batches}
        if any(
            self.runs(base, {**base, **dict.fromkeys(grown, n)})
            for r, others in alike.items()
            for grown in ([r], others)
            for n in (7, 11, 2 * example[r])
        ):
            # The loss holds for other batches; it is the reading that does not.
            raise AdoptionError(
                str(problem)
                if isinstance(problem, AdoptionError)
                else f"{self.original.name}: its steps depend on the size of the batch ({problem}); {_ADVICE}"
            )
        for r in free:
            if r in self.table.units or r in stuck or r in chosen[0]:
                continue
            for k in (0, 1):
                taken = {*chosen[k].values(), *stuck.values(), *([chosen[0][r]] if k else [])}
                pool = [n for n in options[r][k:] + options[r] + [example[r]] if n not in taken]
                chosen[k][r] = pool[0] if pool else example[r]
        if not any(chosen[0].values()):
            raise self._refusal(problem)
        try:
            read = self.at([{**stuck, **chosen[0]}, {**stuck, **chosen[1]}])
        except Different as error:
            raise AdoptionError(
                f"{self.original.name}: its steps depend on the sizes of its inputs ({error}); {_ADVICE}"
            ) from None
        return self._holding(read, stuck)

    def _holding(self, read: Read, stuck: Mapping[Axis, int]) -> Read:
        """`read`, of which some axes have one size only."""
        for axis, origin in read.importer.origin.items():
            if origin in stuck:
                read.importer.fixed[axis] = stuck[origin]
        self.stuck = {**self.stuck, **stuck}
        return read

    def _together(
        self, stuck: Mapping[Axis, int], base: Mapping[Axis, int], kept: AxisTable, fits: Fits
    ) -> list[dict[Axis, int]]:
        """Two sets of sizes to which axes that have one size each grow together; empty ones if they do not.

        They do as halves and their whole, as scores and labels with one more column, which holds weights, or as the sides of a
        square image and its patches.
        """
        spatial = {r: base[r] for of in self.roots() for r in of[2:] if r in base}
        by_factor = [
            [{r: factor * n for r, n in of.items()} for factor in (2, 3)] for of in (stuck, {**spatial, **stuck})
        ]
        by_more = [{r: n + more for r, n in stuck.items()} for more in (2, 5)]
        by_power = [
            [{r: n * factor**p for (r, n), p in zip(stuck.items(), powers, strict=True) if p} for factor in (2, 3)]
            for powers in sorted(itertools.product((0, 1, 2), repeat=len(stuck)), key=lambda of: of.count(0))
            if 2 in powers
        ]
        for grown in (by_factor[0], by_more, by_factor[1], *(by_power if len(stuck) <= _MOST_POWERS else ())):
            fit = all(self.runs(base, {**base, **sizes}) for sizes in grown)
            for sizes in grown if fit else ():
                fit = fit and fits(base, {**base, **sizes})
                self.table = kept.unnamed()
            if fit:
                return grown
        return [{}, {}]

    def runs(self, base: Mapping[Axis, int], sizes: Mapping[Axis, int]) -> bool:
        """Whether the original can be called at these sizes."""
        return self.original.takes_shapes(self.shapes(sizes))

    def reads(self, base: Mapping[Axis, int], sizes: Mapping[Axis, int]) -> bool:
        """Whether it can be read at both sets of sizes."""
        if self.original.tired:
            return False
        try:
            self.at([base, sizes], only_sizes=True)
        except (AdoptionError, Different):
            return False
        return True

    def _sizes_for(
        self, root: Axis, free: Sequence[Axis], example: Mapping[Axis, int], kept: AxisTable, fits: Fits
    ) -> list[int]:
        """Some other sizes that one axis may have while all others keep those of the examples."""
        base = {r: example[r] for r in free}
        n = example[root]
        taken = {m for r, m in base.items() if r != root} | {n}
        large = entries(self.original.shapes) > _LARGE
        few = (2, 3, 5) if large and n < _FEW else ()
        near = (n + 32, n + 64) if n >= _FEW else ()  # still multiples of 8 and 16, where those of n are
        wanted = [m for m in dict.fromkeys((*few, 7, *near, 2 * n, 11, 3 * n, 5, 13, n + 2, 4 * n)) if m not in taken]
        recorded = fits == self.reads
        enough = 2 if recorded else 3 if large else 4  # recordings take their time, and so do large arrays
        found: list[int] = []
        failures = 0
        for m in wanted:
            if recorded and not self.runs(base, {**base, root: m}):
                continue
            if fits(base, {**base, root: m}):
                found.append(m)
            else:
                failures += 1
            self.table = kept.unnamed()
            if len(found) == enough or (failures == enough and not found):
                break
        return found if len(found) > 1 else []  # one alone may fit by chance

    def _tie(self, roots: Sequence[Axis], example: Mapping[Axis, int]) -> bool:
        """Take axes of one size for one axis; whether there were any."""
        first: dict[int, Axis] = {}
        found = False
        for root in roots:
            if first.setdefault(example[root], root) != root:
                self.table.parents[root] = first[example[root]]
                found = True
        return found

    def _tied(self, beside: bool = False) -> AxisTable:
        """The table in which arguments of equal shapes have equal axes; also those that lack one axis, if `beside`."""
        own, parents = self.original.shapes, dict(self.table.parents)
        for i, shape in enumerate(own):
            like = own.index(shape)
            dims: Sequence[int] = range(len(shape))
            if beside and like == i:
                like, dims = next(
                    ((k, left) for k, wider in enumerate(own) for left in _without_one(wider) if [wider[d] for d in left] == [*shape]),
                    (like, dims),
                )  # fmt: skip
            for d, e in zip(range(len(shape)), dims, strict=True):
                a, b = (
                    self.table.root(f"{self.original.names[like]}_{e}"),
                    self.table.root(f"{self.original.names[i]}_{d}"),
                )
                table = AxisTable(parents)
                if table.root(a) != table.root(b):
                    parents[table.root(b)] = table.root(a)
        units = {AxisTable(parents).root(u) for u in self.table.units}
        return AxisTable(parents, units, {})

    def _level(self) -> AxisTable:
        """The table in which all axes of one size are one, as in a matrix of a batch with itself."""
        table = self.table.unnamed()
        example = self.example()
        first: dict[int, Axis] = {}
        for root, n in example.items():
            if root not in table.units and first.setdefault(n, root) != root:
                table.parents[root] = first[n]
        return table


def _without_one(shape: Sequence[int]) -> list[Sequence[int]]:
    """The dimensions of a shape without that of the classes, which is the last one or the second."""
    n = len(shape)
    return [range(n - 1), [0, *range(2, n)]] if n > 1 else []


def drawn(
    free: Sequence[Axis], example: Mapping[Axis, int], draws: Sequence[int], stay: Mapping[Axis, int]
) -> dict[Axis, int]:
    """A size for each axis: of `stay`, else of the draws, else of the examples."""
    numbers = [n for n in draws if n not in stay.values()]
    moving = [r for r in free if r not in stay]
    return {**example, **stay, **dict(zip(moving, numbers, strict=False))}
