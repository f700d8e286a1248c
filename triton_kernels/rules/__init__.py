"""The update rules in Triton: the functions of ``wpadamw/rules`` under the same names.

Values in, values out: no pointer, no mask. States and rows of scalars are tuples, in the order of
the specification's names. One rounding per operation, in the order in which it is written; kernels
are compiled without contraction to FMA.
"""
