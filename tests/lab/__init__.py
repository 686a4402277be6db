"""A fault lab: the whole service with real stores and real faults, at random but from a seed."""
