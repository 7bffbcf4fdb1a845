"""The MIST loss."""
