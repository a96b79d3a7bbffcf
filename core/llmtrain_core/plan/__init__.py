"""What a run costs before it runs: memory, FLOPs, communication, time, money.

Arithmetic is exact where the subject is (parameters, state bytes, volumes); what depends on kernels
and networks is a model with few constants, fitted to published runs (`calibration`).
"""
