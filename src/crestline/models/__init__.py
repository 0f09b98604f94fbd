"""Models: what computes. Everything that loads torch for a model comes through here."""

import os

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
"""oneDNN keeps 1,024 kernels by default, one for every shape of a product in low precision, half a megabyte each. It
looks here once, before its first product."""
