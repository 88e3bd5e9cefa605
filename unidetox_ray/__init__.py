"""unidetox_ray: detoxify causal language models and measure it, on one machine or a Ray cluster.

Importing the package loads nothing else: `config`, `registry` and `cli --help` stay light.
"""

__version__ = "0.1.0"
