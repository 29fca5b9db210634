"""Support: what the other modules use and no lesson shows."""
