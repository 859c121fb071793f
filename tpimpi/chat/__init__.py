"""A conversation at the terminal: what is said, how it is typed and shown, how it is kept."""
