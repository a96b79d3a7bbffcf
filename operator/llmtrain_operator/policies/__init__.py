"""One file for each rule of the job lifecycle."""
