"""One file a rank: its layout, how it is written and read, conversion (which is distribution)."""
