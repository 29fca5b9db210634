"""Support for the other modules; lessons do not show it."""
