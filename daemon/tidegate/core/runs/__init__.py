"""One answer: its state, its window, what it holds, its limits, what may be evicted."""
