// Philox4x32-10 of Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11; the same words as
// lepton_mpi/runtime/random.py. Shared by C++ and CUDA.
#pragma once

#include "lepton/device.hpp"

namespace lepton {

// Replaces the four words of a counter by four random words; key_low and key_high are the halves of the 64-bit key.
LEPTON_HOST_DEVICE inline void philox(unsigned int& c0, unsigned int& c1, unsigned int& c2, unsigned int& c3,
                                      unsigned int key_low, unsigned int key_high) {
  for (int round = 0; round < 10; ++round) {
    const unsigned long long p0 = 0xD2511F53ull * c0;
    const unsigned long long p1 = 0xCD9E8D57ull * c2;
    c0 = static_cast<unsigned int>(p1 >> 32) ^ c1 ^ key_low;
    c1 = static_cast<unsigned int>(p1);
    c2 = static_cast<unsigned int>(p0 >> 32) ^ c3 ^ key_high;
    c3 = static_cast<unsigned int>(p0);
    key_low += 0x9E3779B9u;   // golden ratio
    key_high += 0xBB67AE85u;  // sqrt(3) - 1
  }
}

}  // namespace lepton
