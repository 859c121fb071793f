"""The ranks as one group, and how partial sums are merged."""

# What --allreduce may say, see `comm.sums` and `comm.allreduce`, which must not load before MPI.
ALLREDUCES = ("auto", "mpi", "star", "mesh", "scatter", "recursive-doubling", "ring")
