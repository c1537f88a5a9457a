"""Every recipe of configs/elicit runs, does what its paper says, and its control loses."""
