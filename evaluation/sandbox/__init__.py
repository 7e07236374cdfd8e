"""A sandbox that runs programs which a model wrote."""
