"""What differs between model architectures: one file per family, the rest of the package asks `registry`."""
