"""The machine's limits, and a model's times beside them."""
