"""What is claimed, measured against what a user would do instead; each stage runs alone and goes on where it ended."""
