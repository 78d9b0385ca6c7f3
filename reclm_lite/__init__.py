"""Language-model-enhanced recommendation on the hardware people already have.

Importing this package loads nothing heavy: every stage is a submodule that is
imported by the code that needs it.
"""

__version__ = "0.1.0"
