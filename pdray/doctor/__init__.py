"""What would go wrong on this machine, found before anything is served. Knows nothing of Ray, and
looks at no other machine."""
