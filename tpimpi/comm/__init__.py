"""The ranks as one group, and how partial sums are merged."""
