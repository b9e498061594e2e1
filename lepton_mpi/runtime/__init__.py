"""The process: MPI start-up and end, devices, threads, logging, random numbers, failures."""
