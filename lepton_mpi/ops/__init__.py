"""Operations on NumPy and CuPy arrays, one file each: shape check, reference, fast path, backward."""
