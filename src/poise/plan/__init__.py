"""What a run will need, before it runs: shapes of models, machines, and the seconds and memory of each kind of work."""
