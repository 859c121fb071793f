"""Let `python -m tpimpi` be the `tpimpi` command."""

from tpimpi.cli import main

if __name__ == "__main__":
    main()
