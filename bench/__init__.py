"""The benchmarks, as ``python -m wpadamw bench`` finds them. They run as scripts of this folder."""
