"""The detail sampler by the pixels that it reaches, on a CPU and on CUDA."""
