"""Public tasks on a bundle, by lm-evaluation-harness: the base, all domains on, and routed prompt by prompt."""
