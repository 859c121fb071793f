"""The two kinds of failure a user sees, each one sentence long."""


class UserError(ValueError):
    """Say what the user asked that cannot be done, with the numbers and the way out (exit 2)."""


class MachineError(RuntimeError):
    """Say what the machine could not do (disk full, a read that failed, a lost rank) (exit 1)."""
