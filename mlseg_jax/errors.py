"""What a user can do wrong."""


class UserError(ValueError):
    """One sentence: what was wrong, where, what to do. Commands print it and stop."""
