"""Leaving with what was made: a campaign's domains as folders that stand without it, and what each form loses."""
