"""How fast the package is on this machine, against the plain loops and against the hardware's limit.

Models have random weights of the real shapes, so nothing is downloaded. `python -m unidetox_ray.bench decode` needs
torch, transformers and polars and nothing else; only `pipeline` needs Ray. Importing this package loads none of them.
"""
