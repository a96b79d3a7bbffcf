"""GPU memory and checkpoint size of a training job."""
