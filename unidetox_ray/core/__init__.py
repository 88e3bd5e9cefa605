"""Pure torch: logits, decoding, losses and the plain training loop. No Ray, no files, no configuration.

Dimension letters in this package: B rows of a batch, T positions, V vocabulary.
"""
