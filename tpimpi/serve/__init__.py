"""The HTTP face of a running model: OpenAI's API for programs, a page for people."""
