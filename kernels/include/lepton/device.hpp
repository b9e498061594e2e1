// Marks functions that C++ and CUDA share. No standard header is included: NVRTC has none.
#pragma once

#if defined(__CUDACC__)
#define LEPTON_HOST_DEVICE __host__ __device__
#else
#define LEPTON_HOST_DEVICE
#endif
