"""Whether a cluster, node by node, is fit for a campaign, before anything is started on it."""
