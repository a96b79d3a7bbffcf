"""From text files to packed token shards and batches."""
