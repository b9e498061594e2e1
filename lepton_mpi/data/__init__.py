"""Data: file formats, the hold-out split, sample order, augmentation, normalisation, and the loader."""
