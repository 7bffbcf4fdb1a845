"""Other people's weights: from their folders into our models."""
