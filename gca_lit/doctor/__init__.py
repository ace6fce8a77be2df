"""Whether gca_lit, and a configuration of it, can work on a machine."""
