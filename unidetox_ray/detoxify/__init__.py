"""`unidetox detoxify`: one causal language model, one corpus, one folder with a less toxic model and its card."""
