"""What a campaign ends with: ``report.json``, ``report.md`` and figures, computed from measured numbers alone."""
