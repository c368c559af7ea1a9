"""Finding the best cache of given bytes for one model, from a short text and by forward passes only."""
