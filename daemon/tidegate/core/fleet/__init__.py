"""Which worker lives and what follows: a table and a step, without a clock."""
