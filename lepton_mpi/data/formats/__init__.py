"""Data formats, one file each: from files to samples by number."""
