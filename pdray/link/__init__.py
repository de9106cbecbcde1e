"""Links: the one authenticated connection of a pair of processes, and its messages."""
