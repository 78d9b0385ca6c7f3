"""`reclm bench fit`: training epochs, fits of untrained models, and evaluation."""
