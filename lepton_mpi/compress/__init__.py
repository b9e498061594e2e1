"""Codecs: fp32 values to and from the bytes that travel between ranks. No MPI in here."""
