"""The outer loop: data, training, sweep, meta-router, bundle and report of one campaign, on a connected Ray cluster."""
