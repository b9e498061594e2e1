// Ranges of elements, and how they are cut.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lepton {

// A half-open range of elements of a flat buffer.
struct Extent {
  std::int64_t lo;
  std::int64_t hi;
  std::int64_t size() const { return hi - lo; }
};

// Part `index` of `parts` of an extent, cut at global multiples of `block` elements; parts may be empty.
inline Extent part(Extent whole, int parts, int index, std::int64_t block) {
  const std::int64_t first = whole.lo / block;
  const std::int64_t blocks = (whole.hi + block - 1) / block - first;
  const auto bound = [&](std::int64_t i) {
    return std::clamp((first + blocks * i / parts) * block, whole.lo, whole.hi);
  };
  return whole.size() == 0 ? Extent{whole.lo, whole.lo} : Extent{bound(index), bound(index + 1)};
}

}  // namespace lepton
