"""Values and decisions of both processes: no clock, no I/O, no loop, no chance."""
