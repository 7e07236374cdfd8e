"""What counts as a number in a request. True and False do not."""

import numpy as np


def is_integer(value: object) -> bool:
    """Whether `value` is a whole number of Python or numpy."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether `value` is an integer or a float of Python or numpy."""
    return is_integer(value) or isinstance(value, (float, np.floating))
