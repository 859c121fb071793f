"""Large language models in full precision on weak machines together, over MPI."""

__version__ = "0.1.0"
