"""The policies of the job lifecycle, one file each."""
