"""The machine: devices, seeds, threads, memory, processes, files, and what others keep private."""
