"""How partial sums are merged, by name: the strategies of the allreduce."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mpi4py import MPI


def _mpi_allreduce(comm: MPI.Comm, buffer: np.ndarray) -> None:
    comm.Allreduce(MPI.IN_PLACE, buffer, op=MPI.SUM)


# How partial sums are merged, by name. The order of addition must not depend on the message's
# size (launch.py pins MPI's algorithm), or a token's logits would depend on its company.
STRATEGIES: dict[str, Callable[[MPI.Comm, np.ndarray], None]] = {"mpi": _mpi_allreduce}
