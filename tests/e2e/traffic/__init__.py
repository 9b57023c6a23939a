"""Real packets in a lab: stations that send and receive, packets by hand, a fleet on the ground, a reference judge."""
