"""A task for lm-evaluation-harness that measures toxicity with this package's scorers and metrics.

`unidetox harness-path` prints this folder, for `lm_eval --include_path`. Only `task.py` imports lm_eval.
"""
