"""lossforge against what is installed: one process for each contender, measured in turns.

Machines are noisy, so that a time on its own says little. Every contender of a workload, and a streaming pass over the
same number of bytes, runs once in each round; a result is the median over the rounds, as a multiple of the stream's.
"""

from lossforge.bench.results import Result
from lossforge.bench.run import bench

__all__ = ["Result", "bench"]
