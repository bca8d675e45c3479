"""A base with committed stacks on it, in one process: loading, scoring, encoding, generating. No Ray here."""
