"""The update rules: one file each, here, in ``csrc/rules`` and in ``triton_kernels/rules``."""
