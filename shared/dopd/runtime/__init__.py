"""Time, chance, identity and compute: the only things that differ between real and virtual runs, but for the loop."""
