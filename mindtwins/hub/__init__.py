"""Published weights: fetched from a hub, checked, converted and kept; and models put there."""
