"""bpfleet: networking, identity-based policy and flow visibility in eBPF for plain Linux fleets."""

__version__ = "0.1.0"
