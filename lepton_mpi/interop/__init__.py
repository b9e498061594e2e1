"""Weights from and to other libraries: the safetensors format, and what they call the tensors of our families."""
