"""What is known of an upstream, and whose fault a failure was; it asks none."""
