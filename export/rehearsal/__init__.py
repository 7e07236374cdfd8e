"""What is tried before a bundle is put in place."""
