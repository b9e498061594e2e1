// LEPTON_SIMD marks a function of plain loops to be compiled for several instruction sets; the
// loader picks the best one of the machine. Results do not depend on the choice: the project is
// compiled with -ffp-contract=off, and a sum keeps its written order.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define LEPTON_SIMD __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define LEPTON_SIMD
#endif
