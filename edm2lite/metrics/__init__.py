"""How good generated images are: features, distances, and the registry of metrics."""
