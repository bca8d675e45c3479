"""Measured outcomes: the loss of held-out rows under combinations of domains, and what to make of it."""
