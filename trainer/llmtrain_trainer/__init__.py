"""The program inside a training pod: one launcher, one torch process per GPU."""
