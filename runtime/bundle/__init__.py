"""A bundle on disk: its manifest, its files, and what may have become of them."""
