"""The command line, ``bs_cluster``: what a person does with a campaign, a verb each. Thin: parse, call, show."""
