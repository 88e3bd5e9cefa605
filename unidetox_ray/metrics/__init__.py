"""What is measured: one module per metric, definitions as pure functions. Importing this loads nothing else."""
