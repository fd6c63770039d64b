"""C kernels for CPUs: attention.c, layers.c; library.py compiles and loads them, ops.py calls them."""
