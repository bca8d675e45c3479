"""What a campaign ends with: ``report.json``, ``.md``, ``.html`` and figures, computed from measured numbers alone."""
