"""What a campaign will take, from its config alone: parameters, memory, steps, bytes, hours, and what does not fit."""
