"""What a compiled loss runs on: threads, kernels kept on disk, and gradient buffers that are used again."""
