"""The stages of an experiment; the only place that imports ray and deepspeed. Each reads files and writes files."""
