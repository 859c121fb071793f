"""What stands beside each rank: it sees the rank end, judges silence, and sees launchers off."""
