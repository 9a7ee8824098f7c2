"""What 2:4 gives a network on this machine: endpoints, honest baselines, limits, and a ledger of raw timings."""
