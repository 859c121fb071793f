"""Parts of scripts/compare_peers.py: the programs compared, how they are run, what is shown."""
