"""The decoder, without parallelism."""
