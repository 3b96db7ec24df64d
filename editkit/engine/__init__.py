"""The shared inference engine: schedules, steps, the one sampling loop, inversion, guidance, caching and streaming.

It knows denoisers (`engine.denoiser`), never a particular network, method, configuration or command line.
"""
