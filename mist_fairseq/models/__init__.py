"""The architectures, and pre-trained weights for them."""
