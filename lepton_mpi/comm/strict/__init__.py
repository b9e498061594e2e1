"""Strict mode: collective calls of all ranks are compared before they run."""
