"""A bundle on disk: its manifest, the checks of its files, and the diagnosis of damaged ones."""
