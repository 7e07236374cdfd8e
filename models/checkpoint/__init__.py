"""Reads checkpoint directories, and explains what is wrong with a damaged one."""
