"""Access to the cluster: transport to the login node, helpers, node programs, and the files they share."""
