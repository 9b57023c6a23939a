"""Tests on hosts with kernels of their own; `make test-vm` runs them."""
