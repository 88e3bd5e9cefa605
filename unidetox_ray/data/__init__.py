"""Raw sources as typed tables: one file per data set, one line in `registry.DATASETS`.

`base.load` is the only entry the rest of the package needs. Importing this package loads nothing.
"""
