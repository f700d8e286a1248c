"""Triton kernels of wpadamw, installed as ``wpadamw.triton_kernels``."""
