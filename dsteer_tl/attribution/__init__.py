"""Who writes the shift: layers, components and weights, by contribution and by causal patching."""
