"""The meta-router: from a prompt's hidden states to one gate weight per domain."""
