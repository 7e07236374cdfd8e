"""A bundle on its way to its place: staged, listed, put there in one step."""
