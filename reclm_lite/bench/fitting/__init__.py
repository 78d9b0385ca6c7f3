"""`reclm bench fit`: training epochs, fits without training, and evaluation."""
