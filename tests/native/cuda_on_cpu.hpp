// Runs CUDA kernels on the CPU, for tests of what they compute: the 32 lanes of a warp are coroutines that take turns,
// and a shuffle or ballot lets every lane reach it before any goes on. Lanes of a warp must meet in the same calls;
// warps must not talk to each other.
#pragma once

#include <ucontext.h>

#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__

struct Dim {
  unsigned int x;
};

inline Dim threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

constexpr int kLanes = 32;

struct Warp {
  ucontext_t scheduler;
  ucontext_t lanes[kLanes];
  std::vector<char> stacks[kLanes];
  bool done[kLanes];
  unsigned int meetings[kLanes];            // calls so far, of each lane
  unsigned long long exchanged[2][kLanes];  // the values of this call and of the one before
  int lane = 0;
  std::function<void()> work;
};

inline Warp& warp() {
  static Warp one;
  return one;
}

inline void run_lane() {
  warp().work();
  warp().done[warp().lane] = true;
}

inline void run_warp(unsigned int first_thread) {
  Warp& w = warp();
  for (int lane = 0; lane < kLanes; ++lane) {
    w.stacks[lane].resize(65536);
    w.done[lane] = false;
    w.meetings[lane] = 0;
    getcontext(&w.lanes[lane]);
    w.lanes[lane].uc_stack.ss_sp = w.stacks[lane].data();
    w.lanes[lane].uc_stack.ss_size = w.stacks[lane].size();
    w.lanes[lane].uc_link = &w.scheduler;
    makecontext(&w.lanes[lane], run_lane, 0);
  }
  for (int num_done = 0; num_done < kLanes;) {
    num_done = 0;
    for (w.lane = 0; w.lane < kLanes; ++w.lane) {
      threadIdx.x = first_thread + static_cast<unsigned int>(w.lane);
      if (!w.done[w.lane]) swapcontext(&w.scheduler, &w.lanes[w.lane]);
      num_done += w.done[w.lane] ? 1 : 0;
    }
  }
}

// Gives this lane's value to the others and returns the values of all.
inline const unsigned long long* meet(unsigned long long value) {
  Warp& w = warp();
  unsigned long long* const values = w.exchanged[w.meetings[w.lane]++ % 2];
  values[w.lane] = value;
  swapcontext(&w.lanes[w.lane], &w.scheduler);
  return values;
}

inline void launch(unsigned int groups, unsigned int threads, std::function<void()> work) {
  warp().work = std::move(work);
  gridDim.x = groups;
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < groups; ++blockIdx.x) {
    for (unsigned int first = 0; first < threads; first += kLanes) run_warp(first);
  }
}

}  // namespace cuda_on_cpu

template <class T>
T __shfl_xor_sync(unsigned int, T value, int distance) {
  unsigned long long bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const unsigned long long other = cuda_on_cpu::meet(bits)[cuda_on_cpu::warp().lane ^ distance];
  std::memcpy(&value, &other, sizeof value);
  return value;
}

inline unsigned int __ballot_sync(unsigned int, bool vote) {
  const unsigned long long* votes = cuda_on_cpu::meet(vote ? 1 : 0);
  unsigned int all = 0;
  for (int lane = 0; lane < cuda_on_cpu::kLanes; ++lane) all |= static_cast<unsigned int>(votes[lane]) << lane;
  return all;
}
