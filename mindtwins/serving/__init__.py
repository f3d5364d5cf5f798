"""A model behind HTTP: requests that wait together are computed together."""
