"""Copies of data sets: the packed form, conversion into it, and staging on disks of the nodes."""
