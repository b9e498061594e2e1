"""Samples that arrive while training runs."""
