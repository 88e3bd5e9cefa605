"""What makes a model less toxic: one file per method, three kinds, one interface each (`base.py`)."""
