"""What workers of a config can do on this machine, measured for the simulator. Knows no Ray."""
